"""What every service does that follows a channel: read what it names, say how far it is, ask who still needs the old.

channel.py   which version should be active now
version.py   one version's state
versions.py  all of them, and what the channel's word means for each
lifting.py   a version's way to ready, or to rejected
leases.py    whether a gateway may still use an older one
places.py    which version goes when the wanted one finds no place
making_way.py  the old version goes before the new one is loaded, where two do not fit
settings.py  what an operator can say of swaps
refusals.py  whether a version of the release was refused somewhere
status.py    this replica's own record
slow.py      a registry that does not answer
copying.py   a version's private copy
spares.py    private copies that nothing uses any more
"""

from acemath_registry.following.channel import ChannelFollower, Desired
from acemath_registry.following.copying import copied
from acemath_registry.following.leases import Leases, StatusLeases, Usage, forget_gateway
from acemath_registry.following.lifting import Lifting, Patience
from acemath_registry.following.making_way import GATE_TIMEOUT_SECONDS, MakingWay, SwapStrategy
from acemath_registry.following.places import SETTLE_SECONDS, Places
from acemath_registry.following.refusals import Refusals, StatusRefusals
from acemath_registry.following.settings import SwapSettings
from acemath_registry.following.spares import prune
from acemath_registry.following.status import StatusFile
from acemath_registry.following.version import BRINGING_UP, ENDED, SERVING, FollowedVersion
from acemath_registry.following.versions import MAX_VERSIONS, Versions, rounds

__all__ = [
    "BRINGING_UP",
    "ENDED",
    "GATE_TIMEOUT_SECONDS",
    "MAX_VERSIONS",
    "SERVING",
    "SETTLE_SECONDS",
    "ChannelFollower",
    "Desired",
    "FollowedVersion",
    "Leases",
    "Lifting",
    "MakingWay",
    "Patience",
    "Places",
    "Refusals",
    "StatusFile",
    "StatusLeases",
    "StatusRefusals",
    "SwapSettings",
    "SwapStrategy",
    "Usage",
    "Versions",
    "copied",
    "forget_gateway",
    "prune",
    "rounds",
]
