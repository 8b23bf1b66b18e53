"""Whether an engine makes tokens. A health endpoint does not say so: a stuck engine's is fine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from acemath_policy.vllm_server import Load


@dataclass(frozen=True, slots=True)
class PulseLimits:
    """All in seconds.

    Attributes:
        progress: ready = a token was made within this time.
        idle_probe: an idle engine is asked for a token after this time without one.
        stall: an engine without a token for so long is restarted.
    """

    progress: float
    idle_probe: float
    stall: float


class Pulse:
    """What one engine's counters have said since it became ready.

    Args:
        limits: see there.
        clock: monotonic seconds.
    """

    def __init__(self, limits: PulseLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._generated = 0
        self._progress_at = clock()  # it starts after the warm-up, which made tokens
        self._idle_since: float | None = None

    def saw(self, load: Load) -> None:
        """Take in one look at the counters."""
        if load.generated > self._generated:
            self._generated = load.generated
            self._progress_at = self._clock()
        self._idle_since = (self._idle_since or self._clock()) if load.idle else None

    def probed(self) -> None:
        """A one-token probe succeeded."""
        self._progress_at = self._clock()

    def wants_probe(self) -> bool:
        """Whether a one-token probe is due: only an idle engine is asked, a busy one shows its pulse by itself."""
        return self._idle_since is not None and self.age() >= self._limits.idle_probe

    def age(self) -> float:
        """Seconds since the last sign that it makes tokens."""
        return self._clock() - self._progress_at

    def alive(self) -> bool:
        """Whether traffic should come here; however full it is, it is alive while tokens come."""
        return self.age() <= self._limits.progress

    def stalled(self) -> bool:
        """Whether only a restart will help."""
        return self.age() > self._limits.stall

    def quiet_for(self) -> float:
        """Seconds for which nothing has been running or waiting."""
        return 0.0 if self._idle_since is None else self._clock() - self._idle_since
