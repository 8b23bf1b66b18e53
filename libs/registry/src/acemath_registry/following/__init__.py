"""What every service does that follows a channel: read what it names, say how far it is, ask who still needs the old.

channel.py   which version should be active now
leases.py    whether a gateway may still use an older one
places.py    which version goes when the wanted one finds no place
status.py    this replica's own record
spares.py    private copies that nothing uses any more
"""

from acemath_registry.following.channel import ChannelFollower, Desired
from acemath_registry.following.leases import Leases, StatusLeases, Usage, forget_gateway
from acemath_registry.following.places import SETTLE_SECONDS, Places
from acemath_registry.following.spares import prune
from acemath_registry.following.status import StatusFile

__all__ = [
    "SETTLE_SECONDS",
    "ChannelFollower",
    "Desired",
    "Leases",
    "Places",
    "StatusFile",
    "StatusLeases",
    "Usage",
    "forget_gateway",
    "prune",
]
