"""A circuit breaker for each replica: one that fails gets no work while there is another, then one call as a trial.

| state     | gets work                                  | becomes                                                   |
|-----------|--------------------------------------------|-----------------------------------------------------------|
| closed    | its share                                  | open when a call fails                                    |
| open      | when nobody else is there                  | half open after 2 s; if it hung 15 s, doubling up to 240 s |
| half open | one call at a time, others go elsewhere    | closed when that gives something, open when it fails      |

A replica that is alone is asked whatever its state: whether it can serve at all is known from its own `/v1/slots`, and
a request that nobody else could answer is better tried than refused. The retry budget bounds what such tries cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from acemath_gateway.metrics import BreakerState

_OPEN_SECONDS = 2.0
_HUNG_SECONDS, _LONGEST_HUNG_SECONDS = 15.0, 240.0
_FORGOTTEN_SECONDS = 600.0  # replicas come and go; who is not asked again is not remembered for ever


@dataclass(slots=True)
class _Known:
    """What is remembered of a replica that failed: until when it is open, if it is; how often in a row it hung."""

    until: float
    closed: bool = False
    hangs: int = 0


class Breakers:
    """The breakers of all replicas of one kind.

    Args:
        opened: called whenever one opens.
    """

    def __init__(self, opened: Callable[[], object] = lambda: None) -> None:
        self._opened = opened
        self._known: dict[str, _Known] = {}

    def state(self, endpoint: str) -> BreakerState:
        """How it stands with a replica now."""
        return _state(self._known.get(endpoint), time.monotonic())

    def count(self, state: BreakerState) -> int:
        """Replicas in this state, of those that failed lately."""
        now = time.monotonic()
        return sum(_state(known, now) is state for known in self._known.values())

    def failed(self, endpoint: str, *, hung: bool = False) -> None:
        """Open it: for a moment; for longer each time when the replica took work and hung."""
        now = time.monotonic()
        self._forget(now)
        if self.state(endpoint) is not BreakerState.OPEN:
            self._opened()
        known = self._known.setdefault(endpoint, _Known(now))
        seconds = _OPEN_SECONDS
        if hung:
            seconds = min(_HUNG_SECONDS * 2**known.hangs, _LONGEST_HUNG_SECONDS)
            known.hangs = min(known.hangs + 1, 8)
        known.until = now + seconds if known.closed else max(now + seconds, known.until)
        known.closed = False

    def answered(self, endpoint: str) -> None:
        """Close it: the replica gave something. How often it hung is known until a whole call went well."""
        known = self._known.get(endpoint)
        if known is not None:
            known.closed = True

    def went_well(self, endpoint: str) -> None:
        """Close it, and think no ill of the replica any more."""
        self._known.pop(endpoint, None)

    def _forget(self, now: float) -> None:
        self._known = {e: known for e, known in self._known.items() if known.until + _FORGOTTEN_SECONDS > now}


def _state(known: _Known | None, now: float) -> BreakerState:
    if known is None or known.closed:
        return BreakerState.CLOSED
    return BreakerState.OPEN if known.until > now else BreakerState.HALF_OPEN
