"""One version in this agent: its state, and why."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from acemath_core.wire import Slot, SlotState
from acemath_policy.server import PolicyServer
from acemath_registry import ModelRef, ReleaseMember

_log = logging.getLogger(__name__)

BRINGING_UP = frozenset({SlotState.VERIFYING, SlotState.STAGING, SlotState.WARMING})
SERVING = frozenset({SlotState.READY, SlotState.ACTIVE, SlotState.DRAINING})
ENDED = frozenset({SlotState.RETIRED, SlotState.REJECTED})


@dataclass
class VersionSlot:
    """What the agent knows of one version.

    Attributes:
        member: the version and the digest of its manifest, as the release names it.
        generation: the last channel generation that named it.
        releases: ids of the releases that named it.
        model: the verified private copy.
        server: the vLLM server, from staging on.
        work: the task that brings it up or stops it.
        proved: it has been ready once, so that a failed start is not its own fault.
        failures: failed starts or crashes in a row.
        stopping: TERM was sent; it takes no more requests.
    """

    member: ReleaseMember
    generation: int
    releases: set[str]
    state: SlotState = SlotState.VERIFYING
    since: float = field(default_factory=time.time)
    reason: str | None = None
    model: Path | None = None
    server: PolicyServer | None = None
    work: asyncio.Task[None] | None = None
    proved: bool = False
    failures: int = 0
    stopping: bool = False

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
        """Whether it is being stopped or has ended: its place is free soon."""
        return self.stopping or self.state in ENDED

    def move(self, state: SlotState, reason: str | None = None) -> None:
        """Enter a state; the same state with another reason is no change of state."""
        if state is not self.state:
            self.since = time.time()
            _log.info("%s: %s -> %s", self.ref, self.state, state, extra={"version": str(self.ref), "reason": reason})
        self.state, self.reason = state, reason

    def offered(self) -> str | None:
        """The base URL that may be sent requests, None when there is none."""
        if self.state not in SERVING or self.stopping or self.server is None:
            return None
        return self.server.endpoint if self.silence() is None else None

    def silence(self) -> str | None:
        """Why its server should get no requests although its state says so, None while it makes tokens."""
        if self.server is None or self.state not in SERVING:
            return None
        dead = self.server.dead()  # no round has seen it yet
        if dead is None and not self.server.pulse.alive():
            return f"{self.ref} has made no token for {self.server.pulse.age():.0f} s"
        return dead

    def wire(self) -> Slot:
        """As `GET /v1/slots` shows it."""
        reason = self.silence() or self.reason
        return Slot(version=str(self.ref), state=self.state, endpoint=self.offered(), since=self.since, reason=reason)
