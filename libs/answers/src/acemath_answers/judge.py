"""`AnswerJudge`: are two answers the same, and which of many are? For services, training and evaluation."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType

from acemath_answers.compare import Verdict, compare_cheaply
from acemath_answers.normalise import MAX_ANSWER_CHARS
from acemath_answers.partition import Partition, Question
from acemath_answers.pool import WorkerLimits, WorkerPool

DEFAULT_DEADLINE_S = 10.0


class AnswerJudge:
    """Decide on answers: the cheap path in the caller's thread, computer algebra in killable worker processes.

    Use it as a context manager (`with` or `async with`), or call `start` and `close`. One judge serves many threads
    and event loops. No text raises; a call ends at its deadline. One call occupies at most all workers but one, and
    the queue is first come first served, so that a call full of hostile answers leaves its neighbours a worker.
    The cheap path waits for nobody.
    """

    def __init__(self, limits: WorkerLimits | None = None) -> None:
        self._pool = WorkerPool(limits)
        self._in_flight_per_call = max(1, self._pool.limits.workers - 1)

    def start(self) -> "AnswerJudge":
        """Start the workers in the background and return at once."""
        self._pool.start()
        return self

    def close(self) -> None:
        """Kill the workers; waiting calls end with OVERLOADED."""
        self._pool.close()

    def process_ids(self) -> list[int]:
        """Return the process ids of the workers that are there now."""
        return self._pool.process_ids()

    def __enter__(self) -> "AnswerJudge":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> "AnswerJudge":
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def equivalent(self, a: str, b: str, *, deadline_s: float = DEFAULT_DEADLINE_S) -> Verdict:
        """Return the verdict on two answers within `deadline_s` seconds, waiting for a worker included. Symmetric."""
        if (cheap := compare_cheaply(a, b)) is not None:
            return cheap
        future = self._pool.submit([a, b])
        wait([future], timeout=deadline_s)
        return _verdict_now(future)

    async def aequivalent(self, a: str, b: str, *, deadline_s: float = DEFAULT_DEADLINE_S) -> Verdict:
        """`equivalent` without blocking the event loop."""
        if (cheap := compare_cheaply(a, b)) is not None:
            return cheap
        future = self._pool.submit([a, b])
        try:
            await asyncio.wait([_watched(future)], timeout=deadline_s)
        finally:
            verdict = _verdict_now(future)
        return verdict

    def classes(self, answers: Sequence[str | None], *, deadline_s: float = DEFAULT_DEADLINE_S) -> list[int | None]:
        """Return the equivalence class of every answer, numbered 0, 1, … in first-seen order; None for None.

        An answer joins the first class whose representative (first member) it equals; see `partition`. What is
        undecided after `deadline_s` seconds, what has no mathematical reading and what times out stays a class of
        its own, with its equal spellings.
        """
        partition = Partition(answers)
        call = _Call(self._pool, answers, partition, self._in_flight_per_call)
        give_up = time.monotonic() + deadline_s
        try:
            while call.fill() and (left := give_up - time.monotonic()) > 0:
                wait(call.running, timeout=left, return_when=FIRST_COMPLETED)
        finally:
            call.abandon()
        return partition.classes()

    async def aclasses(
        self, answers: Sequence[str | None], *, deadline_s: float = DEFAULT_DEADLINE_S
    ) -> list[int | None]:
        """`classes` without blocking the event loop."""
        partition = Partition(answers)
        call = _Call(self._pool, answers, partition, self._in_flight_per_call)
        give_up = time.monotonic() + deadline_s
        try:
            while call.fill() and (left := give_up - time.monotonic()) > 0:
                watched = [_watched(future) for future in call.running]
                await asyncio.wait(watched, timeout=left, return_when=FIRST_COMPLETED)
        finally:
            call.abandon()
        return partition.classes()


class _Call:
    """The comparisons of one `classes` call: those in flight, and those that wait for one of them to end."""

    def __init__(
        self, pool: WorkerPool, answers: Sequence[str | None], partition: Partition, max_in_flight: int
    ) -> None:
        self._pool = pool
        self._answers = answers
        self._partition = partition
        self._max_in_flight = max_in_flight
        self._waiting: list[Question] = []
        self.running: dict[Future[Verdict], Question] = {}

    def fill(self) -> bool:
        """Record what has ended, submit what may run; return whether anything is still in flight."""
        while True:
            for future in [future for future in self.running if future.done()]:
                self._partition.record(self.running.pop(future), _verdict_now(future))
            self._waiting += self._partition.next_questions()
            while self._waiting and len(self.running) < self._max_in_flight:
                question = self._waiting.pop(0)
                self.running[self._pool.submit(self._texts(question))] = question
            if not any(future.done() for future in self.running):
                return bool(self.running)

    def abandon(self) -> None:
        """Give back the places in the queue that this call still holds."""
        for future in self.running:
            future.cancel()

    def _texts(self, question: Question) -> list[str]:
        positions = (question.first,) if question.second is None else (question.first, question.second)
        return [(self._answers[position] or "")[:MAX_ANSWER_CHARS] for position in positions]


def _watched(future: Future[Verdict]) -> asyncio.Future[None]:
    """Return an asyncio future that ends with `future` and whose cancelling leaves it alone."""
    loop = asyncio.get_running_loop()
    watched: asyncio.Future[None] = loop.create_future()

    def ended(_: Future[Verdict]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if watched.done() else watched.set_result(None))

    future.add_done_callback(ended)
    return watched


def _verdict_now(future: Future[Verdict]) -> Verdict:
    """Return the verdict of a comparison that ended; of one that did not, OVERLOADED if it never began."""
    if future.cancel() or future.cancelled():
        return Verdict.OVERLOADED
    return future.result() if future.done() else Verdict.TIMEOUT
