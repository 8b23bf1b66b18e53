"""One version in a service that follows a channel: its state, and why."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from acemath_core.wire import SlotState
from acemath_registry.refs import ModelRef
from acemath_registry.releases import ReleaseMember

_log = logging.getLogger(__name__)

BRINGING_UP = frozenset({SlotState.VERIFYING, SlotState.STAGING, SlotState.WARMING})
SERVING = frozenset({SlotState.READY, SlotState.ACTIVE, SlotState.DRAINING})
ENDED = frozenset({SlotState.RETIRED, SlotState.REJECTED})
_REMEMBERED = 64  # releases that named a version: one half of a release may stay for years while the other changes


@dataclass
class FollowedVersion:
    """What a service knows of one version; each adds what serves it.

    Attributes:
        member: the version and the digest of its manifest, as the release names it.
        generation: the last channel generation that named it.
        releases: ids of releases that named it: of the last ones, when there were many.
        state: where it is.
        since: Unix time of the last change of state.
        reason: why it is there, where there is something to say.
        work: the task that brings it up (or stops it).
        failures: failed attempts in a row.
        shared: the channel named it for a share of the requests once: gateways may use it by what they saw, whatever
            generation they route by.
        stands_in: gateways route by it although the channel names another one, and nothing else is active: it was
            brought up again after a restart, and serves until the named one does. While it comes up it is kept
            for them, whichever of the two is ready first.
        place: set when it may be loaded, or when it may never be, see `refusal`.
        granted: it may be loaded, or was.
        waits: it is verified, and waits for its place.
        refusal: why it gets no place, or loses it, None as long as it may have one.
        displaced: another version was stopped for it and can be brought back: it is not tried for ever.
        gated: it takes no new jobs, because it makes room; it drains.
    """

    member: ReleaseMember
    generation: int
    releases: set[str]
    state: SlotState = SlotState.VERIFYING
    since: float = field(default_factory=time.time)
    reason: str | None = None
    work: asyncio.Task[None] | None = None
    failures: int = 0
    shared: bool = False
    stands_in: bool = False
    place: asyncio.Event = field(default_factory=asyncio.Event)
    granted: bool = False
    waits: bool = False
    refusal: str | None = None
    displaced: bool = False
    gated: bool = False

    @property
    def ref(self) -> ModelRef:
        """The version."""
        return self.member.ref

    @property
    def busy(self) -> bool:
        """Whether a task is at work on it."""
        return self.work is not None and not self.work.done()

    @property
    def leaving(self) -> bool:
        """Whether it has ended, or is being stopped: its place is free as soon as no task is at work on it."""
        return self.state in ENDED

    @property
    def placed(self) -> bool:
        """Whether it is loaded, may be at any moment, or is still being stopped."""
        return self.granted and (self.state not in ENDED or self.busy)

    def named_by(self, release: str) -> None:
        """Remember a release that names it; of one that is forgotten its members still tell (`Leases.holder`)."""
        if release not in self.releases and len(self.releases) >= _REMEMBERED:
            self.releases.clear()
        self.releases.add(release)

    def give_place(self) -> None:
        """Let it be loaded."""
        self.granted = True
        self.place.set()

    def refuse(self, reason: str) -> None:
        """Let it wait for its place no longer; it is rejected."""
        self.refusal, self.waits = reason, False
        self.place.set()

    def move(self, state: SlotState, reason: str | None = None) -> None:
        """Enter a state; the same state with another reason is no change of state. Gated is only what drains."""
        if state is not self.state:
            self.since = time.time()
            _log.info("%s: %s -> %s", self.ref, self.state, state, extra={"version": str(self.ref), "reason": reason})
        self.state, self.reason = state, reason
        self.gated = self.gated and state is SlotState.DRAINING
