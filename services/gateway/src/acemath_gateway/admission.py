"""Who may start: a request costs as many places as it makes candidates, and waits for them in a bounded queue.

Requests of one gateway are admitted by priority and, within one, in the order of their arrival, so that a large one is
not starved by small ones (`turns.py` has the rule); between gateways the shared limit decides, which keeps a share of
its places from batch work, and all that come free while somebody more urgent waits anywhere. Nothing waits longer than
its own deadline.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, Unavailable
from acemath_core.wire import Priority
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.ports import LimitOutcome, SequenceLimit
from acemath_gateway.turns import Ticket, Turns

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


@dataclass(frozen=True, slots=True)
class _Wanted:
    request_id: str
    sequences: int
    deadline: Deadline


class Admission:
    """The gateway's door.

    Args:
        limit: bounds the sequences in flight.
        max_sequences: the largest cost that can ever be granted.
        max_queued: requests that may wait at once in this gateway; those that are less urgent do not count.
        max_wait_seconds: longest wait for a place.
        patience_seconds: see `Turns`.
        metrics: where admissions and waits are counted.
    """

    def __init__(
        self,
        limit: SequenceLimit,
        *,
        max_sequences: int,
        max_queued: int,
        max_wait_seconds: float,
        patience_seconds: float,
        metrics: DoorMetrics,
    ) -> None:
        self._limit, self._max_sequences = limit, max_sequences
        self._max_queued, self._max_wait = max_queued, max_wait_seconds
        self._metrics = metrics
        self._turns = Turns(patience_seconds)
        self._places_back = asyncio.Event()
        self._typical_seconds = 1.0

    @asynccontextmanager
    async def enter(
        self, request_id: str, sequences: int, deadline: Deadline, priority: Priority = Priority.DEFAULT
    ) -> AsyncIterator[Admitted]:
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
            outcome = await self._wait_for_places(stack, _Wanted(request_id, sequences, deadline), priority)
            entered = time.monotonic()
            self._metrics.admissions.labels(outcome).inc()
            self._metrics.queue_wait.observe(entered - asked)
            try:
                yield Admitted(outcome, entered - asked)
            finally:
                self._typical_seconds += _SMOOTHING * (time.monotonic() - entered - self._typical_seconds)

    async def _wait_for_places(self, stack: AsyncExitStack, wanted: _Wanted, priority: Priority) -> LimitOutcome:
        if not self._turns:  # nobody was here before: a burst does not ask one after another
            with suppress(Unavailable):
                return await stack.enter_async_context(self._hold(wanted, spare_only=priority is Priority.BATCH))
        if self._turns.before(priority) >= self._max_queued:
            raise self._full("all places for candidates are taken, and so is the queue for them", priority)
        self._metrics.waiting.inc()
        try:
            async with asyncio.timeout(min(wanted.deadline.remaining(), self._max_wait)):
                return await self._wait_in_turn(stack, wanted, priority)
        except TimeoutError:
            raise self._full("no place for the candidates came free in time", priority) from None
        finally:
            self._metrics.waiting.dec()

    async def _wait_in_turn(self, stack: AsyncExitStack, wanted: _Wanted, priority: Priority) -> LimitOutcome:
        ticket, served = self._turns.join(priority), False
        self._places_back.set()  # whoever was first looks whether it still is
        try:
            outcome = await self._ask_until_granted(stack, wanted, ticket)
            served = True
            return outcome
        finally:
            self._turns.leave(ticket, served=served)

    async def _ask_until_granted(self, stack: AsyncExitStack, wanted: _Wanted, ticket: Ticket) -> LimitOutcome:
        while True:
            await self._turns.come(ticket)
            self._places_back.clear()
            spare_only = ticket.priority is Priority.BATCH and not self._turns.overdue(ticket)
            with suppress(Unavailable):
                return await stack.enter_async_context(self._hold(wanted, spare_only=spare_only))
            await self._pause()

    def _hold(self, wanted: _Wanted, *, spare_only: bool) -> AbstractAsyncContextManager[LimitOutcome]:
        return self._limit.hold(wanted.request_id, wanted.sequences, wanted.deadline, spare_only=spare_only)

    async def _pause(self) -> None:
        with suppress(TimeoutError):  # nothing came back here; another gateway may have given some back
            async with asyncio.timeout(_ASK_AGAIN_SECONDS * random.uniform(0.5, 1.5)):
                await self._places_back.wait()

    def _full(self, what: str, priority: Priority) -> Unavailable:
        waiting = self._turns.before(priority)
        after = min(_LONGEST_RETRY_AFTER, math.ceil(self._typical_seconds * (1 + waiting) / 2))
        return Unavailable(f"{what}; try again after the time in Retry-After", retry_after=after)
