"""Who may start: a request costs as many places as it makes candidates, and waits for them in a bounded queue.

Requests of one gateway are admitted in the order of their arrival, so that a large one is not starved by small ones;
between gateways the shared limit decides. Nothing waits longer than its own deadline.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, Unavailable
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.ports import LimitOutcome, SequenceLimit

_ASK_AGAIN_SECONDS = 0.1  # another gateway's places come back without a word to us
_SMOOTHING = 0.2
_LONGEST_RETRY_AFTER = 30.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request has its places.

    Attributes:
        outcome: whose limit granted them.
        queue_seconds: how long it waited for them.
    """

    outcome: LimitOutcome
    queue_seconds: float


class Admission:
    """The gateway's door.

    Args:
        limit: bounds the sequences in flight.
        max_sequences: the largest cost that can ever be granted.
        max_queued: requests that may wait at once in this gateway.
        max_wait_seconds: longest wait for a place.
        metrics: where admissions and waits are counted.
    """

    def __init__(
        self,
        limit: SequenceLimit,
        *,
        max_sequences: int,
        max_queued: int,
        max_wait_seconds: float,
        metrics: DoorMetrics,
    ) -> None:
        self._limit, self._max_sequences = limit, max_sequences
        self._max_queued, self._max_wait = max_queued, max_wait_seconds
        self._metrics = metrics
        self._turn = asyncio.Lock()  # first come, first served
        self._places_back = asyncio.Event()
        self._waiting = 0
        self._typical_seconds = 1.0

    @asynccontextmanager
    async def enter(self, request_id: str, sequences: int, deadline: Deadline) -> AsyncIterator[Admitted]:
        """Hold `sequences` places for the length of the block.

        Raises:
            InvalidRequest: more places than there are.
            Unavailable: (`overloaded`, with `Retry-After`) the queue is full, or no place came free in time.
        """
        if sequences > self._max_sequences:
            raise InvalidRequest(
                f"this deployment makes at most {self._max_sequences} candidates at once; ask for fewer", param="n"
            )
        asked = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.callback(self._places_back.set)  # left last: when it is set, the places are back
            outcome = await self._wait_for_places(stack, request_id, sequences, deadline)
            entered = time.monotonic()
            self._metrics.admissions.labels(outcome).inc()
            self._metrics.queue_wait.observe(entered - asked)
            try:
                yield Admitted(outcome, entered - asked)
            finally:
                self._typical_seconds += _SMOOTHING * (time.monotonic() - entered - self._typical_seconds)

    async def _wait_for_places(
        self, stack: AsyncExitStack, request_id: str, sequences: int, deadline: Deadline
    ) -> LimitOutcome:
        if not self._waiting:  # nobody was here before: a burst does not ask one after another
            with suppress(Unavailable):
                return await stack.enter_async_context(self._limit.hold(request_id, sequences, deadline))
        if self._waiting >= self._max_queued:
            raise self._full("all places for candidates are taken, and so is the queue for them")
        self._waiting += 1
        self._metrics.waiting.inc()
        try:
            async with asyncio.timeout(min(deadline.remaining(), self._max_wait)), self._turn:
                return await self._ask_until_granted(stack, request_id, sequences, deadline)
        except TimeoutError:
            raise self._full("no place for the candidates came free in time") from None
        finally:
            self._waiting -= 1
            self._metrics.waiting.dec()

    async def _ask_until_granted(
        self, stack: AsyncExitStack, request_id: str, sequences: int, deadline: Deadline
    ) -> LimitOutcome:
        while True:
            self._places_back.clear()
            with suppress(Unavailable):
                return await stack.enter_async_context(self._limit.hold(request_id, sequences, deadline))
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_ASK_AGAIN_SECONDS * random.uniform(0.5, 1.5)):
                await self._places_back.wait()
        except TimeoutError:
            return  # nothing came back here; another gateway may have given some back

    def _full(self, what: str) -> Unavailable:
        after = min(_LONGEST_RETRY_AFTER, math.ceil(self._typical_seconds * (1 + self._waiting) / 2))
        return Unavailable(f"{what}; try again after the time in Retry-After", retry_after=after)
