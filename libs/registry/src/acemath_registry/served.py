"""Which release a channel's gateways serve, and which they served last.

What a channel names may never have been served: replicas rejected it, or it was overtaken. A gateway's own record says
what it serves, and ends with the gateway: a way back, and what a release is compared with, are told by it. What they
served last stays, so that a start finds what to come back to while the named release is not ready.

`status/served/<channel>.json`:
`{"channel": "default", "release": "r-…", "generation": 3, "by": <instance>, "at": <Unix seconds>}`
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from acemath_registry.channels import Channel, current_channel
from acemath_registry.errors import NotFound, VerificationError
from acemath_registry.layout import Layout
from acemath_registry.refs import RELEASE_PATTERN
from acemath_registry.releases import read_channel, read_release
from acemath_registry.status import read_status, read_statuses, write_status

_SERVICE: Final = "served"
_LIVES_S: Final = 60.0
"""A gateway writes its record every few seconds; an older one may be of a gateway that cannot write any more."""


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
        found = _said(read_status(layout, _SERVICE, channel))
        return None if found is None else Served(read_release(layout, found.release).id, found.generation)
    except (NotFound, VerificationError):
        return None


def to_come_back_to(layout: Layout, channel: str) -> Served | None:
    """What was served last, where a start may serve it again: the channel names it, or named it before, and it was not
    rolled back. Where gateways could write once and cannot any more it is of long ago, and none. Raises as
    `last_served`.
    """
    found = last_served(layout, channel)
    current = None if found is None else current_channel(layout, channel)
    if found is None or current is None:
        return None
    before = None if current.rollback else current.previous
    return found if found.release in (current.release, before) else None


def stands(layout: Layout, name: str, current: Channel) -> str:
    """The release that serves while the channel says `current`, as its living gateways say; else what it names.

    What they still serve while a rollback from it comes up is not what anybody wants back.

    Raises:
        StorageError: their records can not be read.
    """
    try:
        records = read_statuses(layout, "gateway", name).values()
    except VerificationError:
        return current.release
    said = [found for found in map(_said, (one for one in records if _lives(one))) if found is not None]
    now = max(said, key=lambda one: one.generation, default=None)
    if now is None or (current.rollback and now.release == current.previous):
        return current.release
    return now.release


def _said(record: dict[str, Any]) -> Served | None:
    release, generation = record.get("release"), record.get("generation")
    if not isinstance(release, str) or not RELEASE_PATTERN.fullmatch(release) or type(generation) is not int:
        return None
    return Served(release, generation)


def _lives(record: dict[str, Any]) -> bool:
    at = record.get("at")
    return isinstance(at, int | float) and time.time() - at <= _LIVES_S


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
