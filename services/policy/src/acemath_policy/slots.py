"""One version in this agent: its state, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acemath_core.wire import Slot
from acemath_policy.server import PolicyServer
from acemath_registry.following import SERVING, FollowedVersion


@dataclass
class VersionSlot(FollowedVersion):
    """What the agent knows of one version.

    Attributes:
        model: the verified private copy.
        server: the vLLM server, from staging on.
        proved: it has been ready once, so that a failed start is not its own fault.
        stopping: TERM was sent; it takes no more requests.
    """

    model: Path | None = None
    server: PolicyServer | None = None
    proved: bool = False
    stopping: bool = False

    @property
    def leaving(self) -> bool:
        """See `FollowedVersion.leaving`."""
        return self.stopping or super().leaving

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
        return Slot(
            version=str(self.ref),
            state=self.state,
            endpoint=self.offered(),
            since=self.since,
            reason=reason,
            gated=self.gated,
            max_sequences=self.server.max_sequences if self.server else None,
            cache_tokens=self.server.cache_tokens if self.server else None,
        )
