"""Who goes when the version that the channel names finds every place taken.

Two versions live at once: the one that serves and the one that comes. A promotion after a release of which only one
half was good finds both places taken by versions that are no longer named: the one that gateways still route by, and
the other half, which no gateway ever used. The second has to go, and nothing that a gateway uses may:

* Active is the version by which the newest gateway routes, or, when they use none, the one that was. What else is
  ready or active drains, so that no gateway flips to it any more. Gateways that route by different releases step
  forward to the newest of them, which frees the older one.
* What drains is stopped when every gateway's record was written `SETTLE_SECONDS` after that move and after the waiting
  began, none of them routes to it or holds a lease on it, and it has nothing to do.

A missing, damaged or old record means *unknown*: everything stays as it is.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from acemath_core.wire import SlotState
from acemath_registry.following.leases import Leases, Usage
from acemath_registry.refs import ModelRef
from acemath_registry.releases import ReleaseMember

_log = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0
"""A gateway that looked just before a version drained may flip to it up to 10 s later (`_VIEW_SECONDS` there), and two
machines' clocks may differ by 5 s: a record that is newer by both together shows what the gateway made of that look."""

_OFFERED = frozenset({SlotState.READY, SlotState.ACTIVE})  # what a gateway may flip to
_SERVING = _OFFERED | {SlotState.DRAINING}
_SECONDS = re.compile(r"\b\d+ s\b")  # an age that grows is no news


class Version(Protocol):
    """One version of a service, as far as its place is concerned.

    Attributes:
        member: the version.
        generation: the last channel generation that named it.
        since: Unix time of the last change of state.
        leaving: it is being stopped, or has ended; its place is free soon.
    """

    member: ReleaseMember
    generation: int
    state: SlotState
    since: float

    @property
    def leaving(self) -> bool:
        """See above."""
        ...

    def move(self, state: SlotState, reason: str | None = None) -> None:
        """Enter a state."""
        ...


V = TypeVar("V", bound=Version)


class Places(Generic[V]):
    """Makes room for the wanted version, and says what it waits for.

    Args:
        leases: what gateways use.
        tell: told every round whether a version waits.
        settle_seconds: how much newer than a move to draining a gateway's record must be.
        now: Unix time.

    Attributes:
        waiting: what the wanted version waits for, in words; None when nothing waits.
    """

    def __init__(
        self,
        leases: Leases,
        tell: Callable[[bool], object],
        settle_seconds: float = SETTLE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._leases, self._tell, self._settle_seconds, self._now = leases, tell, settle_seconds, now
        self._began = now()
        self.waiting: str | None = None

    def waits_for(self, reason: str | None) -> None:
        """What the version that is to be loaded waits for but a free place, in words; None when nothing waits."""
        self._say(reason)

    async def usage(self) -> Usage:
        """What gateways use, see `Leases.usage`."""
        return await self._leases.usage()

    async def lingers(self, version: V) -> str | None:
        """Why a version that had a share of the requests cannot be stopped yet, by the rule for what drains; or None.

        Gateways give it requests by what replicas said, not by generation: a newer generation alone shows nothing.
        """
        usage = await self._leases.usage()
        if usage.unknown is not None or version.member in usage.users:
            return usage.unknown or usage.users[version.member].how
        if usage.written < version.since + self._settle_seconds:
            return "it had a share; until the gateways' records are newer than its draining"
        return None

    async def make_room(self, wanted: ModelRef, living: Sequence[V], quiet: Callable[[V], bool]) -> V | None:
        """Move versions so that one can go; the one that is to be stopped now, None while all have to stay.

        Args:
            wanted: the version that has no place.
            living: the versions that take the places.
            quiet: whether a version has had nothing to do for a while.
        """
        if self.waiting is None:
            self._began = self._now()
        usage = await self._leases.usage()
        going = None
        if not any(version.leaving for version in living):
            if usage.unknown is None:
                _settle(living, usage)
            going = self._going(living, usage, quiet)
        words = [f"{version.member.ref} {self._stands(version, usage, quiet)}" for version in living]
        self._say(f"{wanted} waits for a place: {', '.join(words)}")
        return going

    def _going(self, living: Sequence[V], usage: Usage, quiet: Callable[[V], bool]) -> V | None:
        free = [version for version in living if self._stays(version, usage, quiet) is None]
        return min(free, key=lambda version: (version.state in _SERVING, version.generation), default=None)

    def _stays(self, version: V, usage: Usage, quiet: Callable[[V], bool]) -> str | None:
        """Why a version cannot be stopped now; None when it can."""
        if usage.unknown is not None:
            return usage.unknown
        if version.member in usage.users:
            return usage.users[version.member].how
        if version.state in _OFFERED:
            return "no gateway uses it"
        if usage.written < max(version.since, self._began) + self._settle_seconds:
            return "no gateway uses it; until their records are newer than its draining"
        return None if quiet(version) else "requests are running, or were a moment ago"

    def _stands(self, version: V, usage: Usage, quiet: Callable[[V], bool]) -> str:
        if version.leaving:
            return "is being stopped"
        reason = self._stays(version, usage, quiet)
        if version.state is SlotState.DRAINING:
            version.move(SlotState.DRAINING, reason)
        return f"{version.state.value} ({reason})" if reason else version.state.value

    def _say(self, waiting: str | None) -> None:
        self._tell(waiting is not None)
        if waiting is not None and _plain(waiting) != _plain(self.waiting):
            _log.warning("%s", waiting)
        elif waiting is None and self.waiting is not None:
            _log.info("no version waits for a place any more")
        self.waiting = waiting


def _settle(living: Sequence[V], usage: Usage) -> None:
    """Make the newest version that gateways use the active one, or keep the active one; let the others drain."""

    def rank(version: V) -> tuple[int, bool, int]:  # by what gateways say: so policy and reward keep the same release
        use = usage.users.get(version.member)
        return use.generation if use else -1, _is_active(version), version.generation

    used = any(version.member in usage.users for version in living)
    candidates = [
        v for v in living if (v.member in usage.users and v.state in _SERVING if used else v.state in _OFFERED)
    ]
    kept = max(candidates, key=rank, default=None)
    for version in living:
        if version is kept and not _is_active(version):
            version.move(SlotState.ACTIVE)
        elif version is not kept and version.state in _OFFERED:
            version.move(SlotState.DRAINING)


def _is_active(version: Version) -> bool:
    return version.state is SlotState.ACTIVE


def _plain(text: str | None) -> str:
    return _SECONDS.sub("", text or "")
