"""Whom to ask, how often, and for how long: what calls to replicas have in common, whatever they carry."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.breakers import Breakers
from acemath_gateway.metrics import BreakerState, CallResult

_FAIR_SECONDS = 5.0  # who has not answered by then may be blamed, whatever the caller's deadline was


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
    """Which replica to ask first: the one with least of our own work, those whose breaker is open last.

    Args:
        opened: called whenever a breaker opens.

    Attributes:
        breakers: one for each replica.
    """

    def __init__(self, opened: Callable[[], object] = lambda: None) -> None:
        self.breakers = Breakers(opened)
        self._load: Counter[str] = Counter()
        self._turn = 0

    def order(self, endpoints: Sequence[str]) -> list[str]:
        """The endpoints in the order in which to try them; equals take turns.

        One that is half open comes in its turn while it has no work of ours: the call that then goes there is its
        trial, and until that has given something the others go elsewhere.
        """
        self._turn += 1
        count = max(1, len(endpoints))
        turned = [endpoints[(self._turn + i) % count] for i in range(len(endpoints))]
        return sorted(turned, key=lambda endpoint: (self.is_open(endpoint), self._load[endpoint]))

    def shun(self, endpoint: str, *, hung: bool = False) -> None:
        """Note that an endpoint failed; see `Breakers.failed`."""
        self.breakers.failed(endpoint, hung=hung)

    def answered(self, endpoint: str) -> None:
        """Note that an endpoint gave something."""
        self.breakers.answered(endpoint)

    def well(self, endpoint: str) -> None:
        """Note that an endpoint did what it was asked."""
        self.breakers.went_well(endpoint)

    def is_open(self, endpoint: str) -> bool:
        """Whether an endpoint is to get work only when nobody else is there."""
        state = self.breakers.state(endpoint)
        return state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._load[endpoint] > 0)

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


def at_fault(result: CallResult, deadline: Deadline, started: float) -> bool:
    """Whether a replica is to blame for a failed call.

    It is not where the caller's deadline came before anybody could have answered: otherwise one caller with short
    deadlines decides for all others which replicas are asked.

    Args:
        result: of the call.
        deadline: the caller's.
        started: when the call began, monotonic.
    """
    hurried = time.monotonic() - started < _FAIR_SECONDS
    return not (result is CallResult.TIMEOUT and deadline.expired() and hurried)


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

    def last_as_long_as(self, other: Patience) -> None:
        """Do not give up before another one would that hears nothing from now on."""
        self._until = max(self._until, other._until, key=lambda deadline: deadline.at)

    def give_up(self) -> Deadline:
        """When to stop waiting."""
        return min(self.deadline, self._until, key=lambda deadline: deadline.at)

    def limit(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Raises `TimeoutError` in the block when waiting is over before the block is."""
        return asyncio.timeout(self.give_up().remaining())


class SharedPatience(Patience):
    """Of several calls to one replica: what comes of one of them is a sign of life for all.

    A replica may let calls wait while it works on others; it is silent only when nothing comes of any.
    """

    @contextlib.asynccontextmanager
    async def limit(self) -> AsyncIterator[object]:
        """As `Patience.limit`, and longer when tokens come for another call during the block."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as block:
            timer = loop.call_later(self.give_up().remaining(), lambda: look())

            def look() -> None:
                nonlocal timer
                left = self.give_up().remaining()
                if left > 0:
                    timer = loop.call_later(left, look)
                else:
                    block.reschedule(loop.time())

            try:
                yield block
            finally:
                timer.cancel()
