"""One thread owns the models: it forms passes of what waits, whole candidates and live cells together, oldest first.

The thread sleeps on a condition: nothing wakes it while there is nothing to do, nothing waits while it is idle. A pass
holds one version's work within a budget of tokens; see `batching.choose`, `waiting`, `seats` and `long_calls` for what
goes first. What fails, fails alone; see `passes`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, Unavailable
from acemath_reward.admission import Admission, Backlog, QueueLimits
from acemath_reward.batching import Encoded, Prompts, choose
from acemath_reward.errands import Errand
from acemath_reward.long_calls import LongCall, LongCalls, is_long
from acemath_reward.metrics import RewardMetrics
from acemath_reward.pace import Pace
from acemath_reward.passes import Caller, Pass, PassRunner
from acemath_reward.ports import TokenIds
from acemath_reward.seats import Listener, LiveItem, Seat
from acemath_reward.tickets import Engine, Ticket
from acemath_reward.waiting import Item, Waiting, items_of

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_age = attrgetter("age")


class Batcher:
    """The queue and its thread. `start`, then `submit`, `open` and `call` from the event loop, then `close`.

    Args:
        limits: what may wait.
        metrics: the service's instruments.
    """

    def __init__(self, limits: QueueLimits, metrics: RewardMetrics) -> None:
        self._metrics, self.pace = metrics, Pace()
        self._admission = Admission(limits, metrics, self.pace)
        self._changed = threading.Condition()
        self._waiting, self._prompts = Waiting(), Prompts()
        self._seats: set[Seat] = set()
        self._long = LongCalls(self.pace)
        self._roused: dict[Seat, None] = {}  # seats of which a cell may be due, in the order in which that began
        self._calls: deque[Callable[[], None]] = deque()
        self._under_way = 0  # tokens of the pass that the thread is at
        self._closing = False
        self._runner = PassRunner(metrics, self.pace, self._drop)
        self._thread = threading.Thread(target=self._run, name="reward-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Fail what waits, finish the pass under way, end the thread; blocks until it has ended."""
        with self._changed:
            self._closing = True
            callers: list[Caller] = [*self._waiting.tickets, *self._seats]
            self._changed.notify()
        for caller in callers:
            self._fail(caller, self._stopping())
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to work."""
        return self._thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether the last pass failed: by its caller's fault or the engine's."""
        return self._runner.failing

    def forgive(self) -> None:
        """The engine was asked, and it was not its fault."""
        self._runner.failing = False

    # ----------------------------------------------------------------------------------------------- whole candidates

    def submit(self, engine: Engine, sequences: Sequence[Encoded], deadline: Deadline) -> Ticket:
        """Queue a call's candidates; the caller cancels the ticket when it stops waiting.

        Raises:
            TooLarge: more than the queue holds when it is empty.
            Unavailable: (`reward_overloaded`) it does not fit now, or would not be done by its deadline; says when to
                try again; (`draining`) we are stopping.
        """
        ticket = Ticket(engine, sequences, self._prompts.of(sequences), deadline)
        self._admission.check_size(ticket.tokens, len(sequences))
        long = is_long(engine, sequences, ticket.tokens)
        with self._changed:
            items = items_of(ticket, time.monotonic(), self.pace)
            self._admit(ticket.tokens, len(sequences), deadline, items[-1].age)
            self._waiting.add(self._begin_long(ticket, items) if long else items, ticket)
            self._show()
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Take a call's waiting candidates out; a pass under way is finished for its other callers."""
        with self._changed:
            ticket.cancelled = True
            gone = self._waiting.forget([ticket]) + self._leave_long(self._long.forget([ticket]))
            self._metrics.candidates.labels("cancelled").inc(gone)
            self._show()

    def _begin_long(self, ticket: Ticket, items: Sequence[Item]) -> list[Item]:
        seats, rest = self._long.begin(ticket, items)
        self._seats.update(seats)
        self._roused.update(dict.fromkeys(seats))
        return rest

    def _leave_long(self, seats: Sequence[LongCall]) -> int:
        """Free what they hold; gives how many candidates have no score."""
        for seat in seats:
            self.leave(seat)
        return sum(seat.unscored for seat in seats)

    # --------------------------------------------------------------------------------------------------- live sessions

    def open(self, engine: Engine, prompt: TokenIds, deadline: Deadline, listener: Listener) -> Seat:
        """A live session; its prompt is computed at once. `leave` it when nobody waits for it any more.

        Raises:
            LiveError: as `RewardModel.open`.
            Unavailable: as `submit`, for the prompt alone: nobody knows yet how long the candidates will be.
        """
        with self._changed:
            self._admit(len(prompt), 0, deadline, time.monotonic())
            at_once = len(prompt) if engine.model.server is None else 0  # a server takes it with each candidate
            seat = Seat(engine, engine.model.open(prompt), at_once, listener)
            self._seats.add(seat)
            self._rouse(seat)
        return seat

    def extend(self, seat: Seat, candidate: int, ids: Sequence[int]) -> None:
        """Hand a candidate's next ids over. Raises `LiveError` as `LiveSession.extend`."""
        with self._changed:
            if seat.extend(candidate, ids):
                self._rouse(seat)

    def finish(self, seat: Seat, candidate: int) -> None:
        """No more ids come; its score does. Raises `LiveError` as `LiveSession.finish`."""
        with self._changed:
            seat.finish(candidate)
            self._rouse(seat)

    def peek(self, seat: Seat, candidate: int, closing: Sequence[int]) -> None:
        """A partial score is wanted (`Peeked`). Raises `LiveError` as `LiveSession.peek`."""
        with self._changed:
            seat.peek(candidate, closing)
            self._rouse(seat)

    def drop(self, seat: Seat, candidate: int) -> None:
        """Forget a candidate."""
        with self._changed:
            seat.drop(candidate)
            self._show()

    def leave(self, seat: Seat) -> None:
        """Free what a session holds; may be called twice."""
        with self._changed:
            seat.close()
            self._seats.discard(seat)
            self._roused.pop(seat, None)
            self._show()

    def _rouse(self, seat: Seat) -> None:
        self._roused[seat] = None
        self._show()
        self._changed.notify()

    async def call(self, function: Callable[[], _T]) -> _T:
        """Run `function` on the engine's thread, between two passes."""
        errand = Errand(function)
        with self._changed:
            if self._closing:
                raise self._stopping()
            self._calls.append(errand.run)
            self._changed.notify()
        return await errand.result

    def retry_after(self) -> float:
        """Seconds in which the engine, at its measured speed, works off what waits."""
        with self._changed:
            return self._admission.retry_after(self._tokens())

    def _tokens(self) -> int:
        return self._waiting.tokens + sum(seat.waiting for seat in self._seats)

    def _admit(self, tokens: int, candidates: int, deadline: Deadline, age: float) -> None:
        if self._closing:
            raise self._stopping()
        in_seats = sum(seat.waiting_before(age) for seat in self._seats)
        before = self._under_way + self._waiting.tokens_before(age) + in_seats
        backlog = Backlog(self._tokens(), len(self._waiting), before)
        self._admission.check(tokens, candidates, deadline, backlog)

    def _stopping(self) -> Unavailable:
        return Unavailable("the reward service is stopping; try another replica", code=ErrorCode.DRAINING)

    def _show(self) -> None:
        self._metrics.queue_items.set(len(self._waiting))
        self._metrics.queue_tokens.set(self._tokens())

    # -------------------------------------------------------------------------------------------- the engine's thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            _log.critical("the engine's thread ends; this replica is not ready any more", exc_info=True)
            raise

    def _work(self) -> None:
        while True:
            call: Callable[[], None] | None = None
            work: Pass | None = None
            with self._changed:
                while not (self._calls or self._closing or (work := self._take())):
                    self._changed.wait()
                if self._closing and not self._calls:
                    return
                call = self._calls.popleft() if self._calls else None
            if call:
                call()
            elif work:
                self._runner.run(work)

    def _take(self) -> Pass | None:
        """The next pass: of the oldest work's version, without what nobody waits for."""
        self._under_way = 0
        gone = self._waiting.expired() + self._leave_long(self._long.expired())
        self._metrics.candidates.labels("cancelled").inc(gone)
        offered: list[Item | LiveItem] = sorted([*self._waiting.items, *self._due()], key=_age)
        if not offered:
            self._show()
            return None
        engine = _engine(offered[0])
        same = [item for item in offered if _engine(item) is engine]
        chosen = choose(offers := [item.offer() for item in same], engine.batch_tokens)
        self._under_way = sum(offers[i].tokens for i in chosen)
        return self._taken(engine, [same[i] for i in chosen])

    def _due(self) -> list[LiveItem]:
        """Every due cell of every seat; a seat without one is not asked again before something of it changes."""
        now = time.monotonic()
        found = {seat: seat.items(now) for seat in self._roused}
        self._roused = {seat: None for seat, items in found.items() if items}
        return [item for items in found.values() for item in items]

    def _taken(self, engine: Engine, items: Sequence[Item | LiveItem]) -> Pass:
        whole = tuple(item for item in items if isinstance(item, Item))
        live = tuple(item for item in items if isinstance(item, LiveItem))
        self._waiting.take(whole)
        for item in live:
            item.seat.taken(item.due)
        for seat in {item.seat for item in live}:
            if isinstance(seat, LongCall):
                self._waiting.add(seat.feed(), seat.ticket)
        self._show()
        return Pass(engine, whole, live)

    def _drop(self, caller: Caller) -> None:
        if isinstance(caller, Seat):
            self.leave(caller)
            return
        with self._changed:
            self._waiting.forget([caller])
            self._show()

    def _fail(self, caller: Caller, error: Unavailable) -> None:
        if isinstance(caller, Seat):
            caller.deliver(None, error)
        else:
            caller.deliver(error, 0.0)
        self._drop(caller)


def _engine(item: Item | LiveItem) -> Engine:
    return item.ticket.engine if isinstance(item, Item) else item.seat.engine
