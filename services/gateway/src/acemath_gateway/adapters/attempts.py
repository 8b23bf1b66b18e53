"""Whom to ask, how often, and for how long: what calls to replicas have in common, whatever they carry."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from acemath_core.deadline import Deadline

_SHUNNED_SECONDS = 2.0
_HUNG_SECONDS, _LONGEST_HUNG_SECONDS = 15.0, 240.0


class RetryBudget:
    """Bounds retries to a share of the calls, so that an outage is not multiplied by them.

    Args:
        share: retries earned by each call.
        most: how many can be saved up; also what there is at the start.
    """

    def __init__(self, share: float = 0.2, most: float = 10.0) -> None:
        self._share, self._most, self._tokens = share, most, most

    def earn(self) -> None:
        """Count one call."""
        self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one retry may be made now."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Replicas:
    """Which replica to ask first: the one with least of our own work, those that just failed last."""

    def __init__(self) -> None:
        self._load: Counter[str] = Counter()
        self._shunned_until: dict[str, float] = {}
        self._hangs: Counter[str] = Counter()
        self._turn = 0

    def order(self, endpoints: Sequence[str]) -> list[str]:
        """The endpoints in the order in which to try them; equals take turns."""
        self._turn += 1
        now, count = time.monotonic(), max(1, len(endpoints))
        turned = [endpoints[(self._turn + i) % count] for i in range(len(endpoints))]
        return sorted(turned, key=lambda e: (self._shunned_until.get(e, 0.0) > now, self._load[e]))

    def shun(self, endpoint: str, *, hung: bool = False) -> None:
        """Put an endpoint last, since it just failed: for a moment; for longer each time when it took work and hung."""
        seconds = _SHUNNED_SECONDS
        if hung:
            seconds = min(_HUNG_SECONDS * 2 ** self._hangs[endpoint], _LONGEST_HUNG_SECONDS)
            self._hangs[endpoint] = min(self._hangs[endpoint] + 1, 8)
        now = time.monotonic()
        self._shunned_until = {e: t for e, t in self._shunned_until.items() if t > now}
        self._shunned_until[endpoint] = max(now + seconds, self._shunned_until.get(endpoint, 0.0))

    def well(self, endpoint: str) -> None:
        """Note that an endpoint answered."""
        self._hangs.pop(endpoint, None)
        self._shunned_until.pop(endpoint, None)

    @contextlib.contextmanager
    def working(self, endpoint: str, weight: int) -> Iterator[None]:
        """Count `weight` units of work at an endpoint for the length of the block."""
        self._load[endpoint] += weight
        try:
            yield
        finally:
            self._load[endpoint] -= weight
            if not self._load[endpoint]:
                del self._load[endpoint]


class Patience:
    """When a call that says nothing is over: at the deadline, or sooner when tokens keep us waiting.

    Only tokens count as something: comments, or an API server whose engine is stuck, do not.
    """

    def __init__(self, deadline: Deadline, first_token_seconds: float, between_tokens_seconds: float) -> None:
        self.deadline, self._between = deadline, between_tokens_seconds
        self._until = Deadline.after(first_token_seconds)

    def tokens_came(self) -> None:
        """Start to wait for the next ones."""
        self._until = Deadline.after(self._between)

    def give_up(self) -> Deadline:
        """When to stop waiting."""
        return min(self.deadline, self._until, key=lambda deadline: deadline.at)
