"""One thread owns the models; calls queue for it, and it scores across calls by a budget of tokens.

The thread sleeps on a condition: nothing wakes it while there is nothing to do. A batch that fails is tried again one
call at a time, so that what fails, fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InternalError, ServiceError, TooLarge, Unavailable
from acemath_reward.batching import Encoded, choose, cost, group
from acemath_reward.metrics import RewardMetrics
from acemath_reward.tickets import Engine, Part, Ticket

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_SMOOTHING = 0.2  # weight of the newest batch in the measured speed
_FIRST_GUESS = 500.0  # tokens per second, before anything was measured
_LONGEST_RETRY_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait: tokens (prompts once a call) and candidates."""

    tokens: int
    items: int


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    ticket: Ticket
    position: int

    @property
    def sequence(self) -> Encoded:
        return self.ticket.sequences[self.position]


class Batcher:
    """The queue and its thread. `start`, then `submit` and `call` from the event loop, then `close`.

    Args:
        limits: what may wait.
        metrics: the service's instruments.
    """

    def __init__(self, limits: QueueLimits, metrics: RewardMetrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()  # oldest first
        self._tokens: dict[Ticket, int] = {}  # what each waiting call adds to the queue's tokens
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._speed: float | None = None
        self._thread = threading.Thread(target=self._run, name="reward-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Fail what waits, finish the batch under way, end the thread; blocks until it has ended."""
        with self._changed:
            self._closing = True
            waiting = list(dict.fromkeys(item.ticket for item in self._queue))
            self._forget(waiting)
            self._changed.notify()
        self._fail(waiting, Unavailable("the reward service is stopping; try another replica", code=ErrorCode.DRAINING))
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to work."""
        return self._thread.is_alive()

    def submit(self, engine: Engine, sequences: Sequence[Encoded], deadline: Deadline) -> Ticket:
        """Queue a call's candidates; the caller cancels the ticket when it stops waiting.

        Raises:
            TooLarge: more than the queue holds when it is empty.
            Unavailable: (`reward_overloaded`) it does not fit now; says when it may; (`draining`) we are stopping.
        """
        tokens = cost(sequences)
        if tokens > self._limits.tokens or len(sequences) > self._limits.items:
            self._metrics.rejections.labels("queue_full").inc()
            raise TooLarge(
                f"this call has {tokens} tokens in {len(sequences)} candidates; one call may have "
                f"{self._limits.tokens} in {self._limits.items}; send fewer candidates at once",
                param="candidates",
            )
        ticket = Ticket(engine, sequences, deadline)
        with self._changed:
            self._admit(tokens, len(sequences))
            self._queue.extend(_Item(ticket, position) for position in range(len(sequences)))
            self._tokens[ticket] = tokens
            self._show()
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Take a call's waiting candidates out; a batch under way is finished for its other callers."""
        with self._changed:
            ticket.cancelled = True
            left = sum(item.ticket is ticket for item in self._queue)
            if left:
                self._metrics.candidates.labels("cancelled").inc(left)
                self._forget([ticket])

    async def call(self, function: Callable[[], _T]) -> _T:
        """Run `function` on the engine's thread, between two batches."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(_set_exception, future, error)
            else:
                loop.call_soon_threadsafe(_set_result, future, result)

        with self._changed:
            if self._closing:
                raise Unavailable("the reward service is stopping", code=ErrorCode.DRAINING)
            self._calls.append(run)
            self._changed.notify()
        return await future

    def retry_after(self) -> float:
        """Seconds in which the engine, at its measured speed, works off what waits."""
        seconds = sum(self._tokens.values()) / (self._speed or _FIRST_GUESS)
        return min(max(1.0, math.ceil(seconds)), _LONGEST_RETRY_AFTER)

    # ------------------------------------------------------------------------------------ the queue, under the lock

    def _admit(self, tokens: int, items: int) -> None:
        if self._closing:
            raise Unavailable("the reward service is stopping; try another replica", code=ErrorCode.DRAINING)
        waiting = sum(self._tokens.values())
        if waiting + tokens > self._limits.tokens or len(self._queue) + items > self._limits.items:
            self._metrics.rejections.labels("queue_full").inc()
            raise Unavailable(
                f"the reward service has {waiting} tokens in {len(self._queue)} candidates waiting; try again later",
                code=ErrorCode.REWARD_OVERLOADED,
                retry_after=self.retry_after(),
            )

    def _take(self) -> list[_Item]:
        """The next batch: of the oldest candidate's version, without what nobody waits for."""
        late = [item for item in self._queue if item.ticket.deadline.expired()]
        self._metrics.candidates.labels("cancelled").inc(len(late))
        self._forget(item.ticket for item in late)  # their callers' own timers tell them
        if not self._queue:
            return []
        engine = self._queue[0].ticket.engine
        same = [item for item in self._queue if item.ticket.engine is engine]
        batch = [same[i] for i in choose([item.sequence for item in same], engine.batch_tokens)]
        taken = set(map(id, batch))
        self._queue = deque(item for item in self._queue if id(item) not in taken)
        self._recount({item.ticket for item in batch})
        return batch

    def _forget(self, tickets: Iterable[Ticket]) -> None:
        gone = set(tickets)
        if gone:
            self._queue = deque(item for item in self._queue if item.ticket not in gone)
            self._recount(gone)

    def _recount(self, tickets: set[Ticket]) -> None:
        left: dict[Ticket, list[Encoded]] = {ticket: [] for ticket in tickets}
        for item in self._queue:
            if item.ticket in left:
                left[item.ticket].append(item.sequence)
        for ticket, sequences in left.items():
            self._tokens.pop(ticket, None)
            if sequences:
                self._tokens[ticket] = cost(sequences)
        self._show()

    def _show(self) -> None:
        self._metrics.queue_items.set(len(self._queue))
        self._metrics.queue_tokens.set(sum(self._tokens.values()))

    # ------------------------------------------------------------------------------------------- the engine's thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            _log.critical("the engine's thread ends; this replica is not ready any more", exc_info=True)
            raise

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._calls or self._closing):
                    self._changed.wait()
                if self._closing and not self._calls:
                    return
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._take()
            if call:
                call()
            elif batch:
                self._score(batch)

    def _score(self, batch: list[_Item]) -> None:
        self._note_begin(batch)
        try:
            self._score_together(batch)
        except Exception as error:
            self._metrics.failed_batches.inc()
            tickets = list(dict.fromkeys(item.ticket for item in batch))
            _log.error("a batch of %d calls failed", len(tickets), exc_info=error)
            for ticket in tickets:
                self._score_alone([item for item in batch if item.ticket is ticket], again=len(tickets) > 1)

    def _note_begin(self, batch: list[_Item]) -> None:
        for ticket in {item.ticket for item in batch}:
            waited = ticket.begun()
            if waited is not None:
                self._metrics.queue_seconds.observe(waited)

    def _score_alone(self, items: list[_Item], *, again: bool) -> None:
        """Score one call's part of a failed batch; or, when that was all of the batch, give the call up."""
        ticket = items[0].ticket
        try:
            if not again:
                raise InternalError("the engine failed on this call; quote the x-request-id when you report it")
            self._score_together(items)
        except Exception as error:
            if again:
                _log.error("a call failed by itself", exc_info=error)
            with self._changed:
                self._forget([ticket])
            self._metrics.candidates.labels("failed").inc(len(items))
            failure = error if isinstance(error, ServiceError) else InternalError("the engine failed on this call")
            self._fail([ticket], failure)

    def _score_together(self, items: list[_Item]) -> None:
        engine = items[0].ticket.engine
        groups, where = group([item.sequence for item in items])
        started = time.monotonic()
        found = engine.model.score(groups)
        seconds = time.monotonic() - started
        self._measure(items, sum(part.tokens for part in groups), seconds)
        scores: dict[Ticket, list[tuple[int, float]]] = {}
        for positions, values in zip(where, found, strict=True):
            for position, value in zip(positions, values, strict=True):
                scores.setdefault(items[position].ticket, []).append((items[position].position, value))
        for ticket, pairs in scores.items():
            self._deliver(ticket, pairs, seconds)

    def _deliver(self, ticket: Ticket, pairs: list[tuple[int, float]], seconds: float) -> None:
        if not all(math.isfinite(value) for _, value in pairs):
            with self._changed:
                self._forget([ticket])
            self._metrics.candidates.labels("failed").inc(len(pairs))
            ticket.deliver(InternalError("the model gave a score that is not a number"), seconds)
            return
        self._metrics.candidates.labels("cancelled" if ticket.cancelled else "scored").inc(len(pairs))
        ticket.deliver(Part(tuple(pairs)), seconds)

    def _measure(self, items: list[_Item], tokens: int, seconds: float) -> None:
        speed = tokens / max(seconds, 1e-6)
        self._speed = speed if self._speed is None else (1 - _SMOOTHING) * self._speed + _SMOOTHING * speed
        self._metrics.tokens_per_second.set(self._speed)
        self._metrics.compute_seconds.observe(seconds)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_sequences.observe(len(items))
        self._metrics.saved.inc(sum(item.sequence.tokens for item in items) - tokens)

    def _fail(self, tickets: Iterable[Ticket], error: ServiceError) -> None:
        for ticket in tickets:
            ticket.deliver(error, 0.0)


def _set_result(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[_T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
