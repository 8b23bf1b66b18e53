"""Which release a channel's gateways began to serve last.

What a channel names may never have been served: replicas rejected it, or it was overtaken. A gateway's own record says
what it serves, and ends with the gateway. This one does not, so that a start finds what to come back to while the named
release is not ready, and a way back does not lead to what nobody served.

`status/served/<channel>.json`:
`{"channel": "default", "release": "r-…", "generation": 3, "by": <instance>, "at": <Unix seconds>}`
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from acemath_registry.errors import NotFound, VerificationError
from acemath_registry.layout import Layout
from acemath_registry.refs import RELEASE_PATTERN
from acemath_registry.releases import read_channel, read_release
from acemath_registry.status import read_status, write_status

_SERVICE: Final = "served"


@dataclass(frozen=True, slots=True)
class Served:
    """What was served last.

    Attributes:
        release: its id.
        generation: of the channel, when gateways began to route by it.
    """

    release: str
    generation: int


def last_served(layout: Layout, channel: str) -> Served | None:
    """What a channel's gateways served last; None when none said, or when it is not there to be served any more.

    Raises:
        InvalidRequest: a name that can not be a channel's.
        StorageError: it can not be read.
    """
    try:
        record = read_status(layout, _SERVICE, channel)
        release, generation = record.get("release"), record.get("generation")
        if not isinstance(release, str) or not RELEASE_PATTERN.fullmatch(release) or type(generation) is not int:
            return None
        return Served(read_release(layout, release).id, generation)
    except (NotFound, VerificationError):
        return None


def note_served(layout: Layout, channel: str, served: Served, *, by: str) -> None:
    """Write down what a gateway serves now; one that is behind the others changes nothing.

    Args:
        layout: of the registry.
        channel: its name.
        served: what the gateway routes by.
        by: name of the gateway.

    Raises:
        InvalidRequest, NotFound, VerificationError, StorageError: the channel can not be read, or the record written.
    """
    known = last_served(layout, channel)
    # A generation above the channel's own is of before the registry was restored from a copy.
    if known is not None and served.generation < known.generation <= read_channel(layout, channel).generation:
        return
    document = {"channel": channel, "release": served.release, "generation": served.generation}
    write_status(layout, _SERVICE, channel, document | {"by": by, "at": time.time()})
