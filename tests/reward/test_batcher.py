"""The queue and its thread, on a model of microseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from reward.models import POISON, ArithmeticModel, score_of

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InternalError, ServiceError, TooLarge, Unavailable
from acemath_reward.admission import QueueLimits
from acemath_reward.batcher import Batcher
from acemath_reward.batching import Encoded
from acemath_reward.metrics import RewardMetrics
from acemath_reward.tickets import Engine, Ticket

LATER = Deadline.after(3600)
PROMPT = (5, 6, 7)


def sequences(*values: int) -> list[Encoded]:
    return [Encoded(PROMPT, (value,)) for value in values]


async def collect(ticket: Ticket) -> list[float]:
    scores = {position: score async for part in ticket.parts() for position, score in part.scores}
    return [scores[position] for position in range(len(scores))]


def expected(*values: int) -> list[float]:
    return [score_of(PROMPT, (value,)) for value in values]


class Bench:
    """A batcher with its instruments."""

    def __init__(self, limits: QueueLimits) -> None:
        self.instruments = CollectorRegistry()
        self.batcher = Batcher(limits, RewardMetrics(self.instruments))
        self.model = ArithmeticModel()
        self.engine = Engine("m@1", self.model, batch_tokens=64)
        self.batcher.start()

    def value(self, name: str, **labels: str) -> float:
        return self.instruments.get_sample_value(f"acemath_reward_{name}", labels) or 0.0

    async def occupy(self) -> Ticket:
        """Make the thread hold a batch of one call, so that what follows waits."""
        self.model.hold.clear()
        ticket = self.batcher.submit(self.engine, sequences(1), LATER)
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=60)
        return ticket


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(tokens: int = 1000, items: int = 100) -> Bench:
        made.append(Bench(QueueLimits(tokens, items)))
        return made[-1]

    yield make
    for bench in made:
        bench.model.hold.set()
        bench.batcher.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


async def test_scores_come_back_in_the_callers_order(bench: Bench) -> None:
    ticket = bench.batcher.submit(bench.engine, sequences(3, 1, 2), LATER)
    assert await collect(ticket) == expected(3, 1, 2)
    assert ticket.queue_seconds is not None and ticket.compute_seconds > 0


async def test_calls_that_wait_share_a_batch_and_its_prompt(bench: Bench) -> None:
    first = await bench.occupy()
    others = [bench.batcher.submit(bench.engine, sequences(value), LATER) for value in range(20, 30)]
    bench.model.hold.set()
    assert [await collect(ticket) for ticket in others] == [expected(value) for value in range(20, 30)]
    await collect(first)
    assert [len(batch) for batch in bench.model.batches] == [1, 1], "one group: the prompt once"
    assert len(bench.model.batches[1][0].candidates) == 10
    assert bench.value("prompt_tokens_saved_total") == 9 * len(PROMPT)
    assert bench.value("queue_items") == bench.value("queue_tokens") == 0


async def test_one_thread_owns_the_model(bench: Bench) -> None:
    await asyncio.gather(*(collect(bench.batcher.submit(bench.engine, sequences(i), LATER)) for i in range(20, 60)))
    assert len(bench.model.threads) == 1


async def test_versions_never_share_a_batch(bench: Bench) -> None:
    first = await bench.occupy()
    other = Engine("m@2", ArithmeticModel(), batch_tokens=64)
    tickets = [bench.batcher.submit(e, sequences(i), LATER) for i in range(20, 26) for e in (bench.engine, other)]
    bench.model.hold.set()
    for ticket in (first, *tickets):
        await collect(ticket)
    assert len(bench.model.batches) == 2 and len(other.model.batches) == 1  # type: ignore[attr-defined]


async def test_a_poisonous_call_fails_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    first = await bench.occupy()
    good = [bench.batcher.submit(bench.engine, sequences(i, i + 1), LATER) for i in (20, 30)]
    bad = bench.batcher.submit(bench.engine, sequences(40, POISON), LATER)
    late = bench.batcher.submit(bench.engine, sequences(50), LATER)
    bench.model.hold.set()
    with pytest.raises(InternalError):
        await collect(bad)
    assert [await collect(t) for t in (first, *good, late)] == [
        expected(1),
        expected(20, 21),
        expected(30, 31),
        expected(50),
    ]
    assert bench.value("scored_candidates_total", result="failed") == 2
    assert bench.value("failed_batches_total") == 1
    assert "poisoned" in caplog.text


async def test_a_poisonous_call_alone_in_its_batch_is_not_tried_again(bench: Bench) -> None:
    with pytest.raises(InternalError):
        await collect(bench.batcher.submit(bench.engine, sequences(POISON), LATER))
    assert len(bench.model.batches) == 1
    assert await collect(bench.batcher.submit(bench.engine, sequences(4), LATER)) == expected(4)


async def test_a_score_that_is_no_number_fails_its_caller_only(bench: Bench) -> None:
    first = await bench.occupy()
    bench.model.answer = lambda prompt, own: float("nan") if own == (66,) else score_of(prompt, own)
    bad, good = (bench.batcher.submit(bench.engine, sequences(value), LATER) for value in (66, 67))
    bench.model.hold.set()
    with pytest.raises(InternalError, match="not a number"):
        await collect(bad)
    assert await collect(good) == expected(67)
    await collect(first)


async def test_cancelling_takes_the_waiting_out_of_the_queue(bench: Bench) -> None:
    first = await bench.occupy()
    waiting = bench.batcher.submit(bench.engine, sequences(20, 21), LATER)
    assert (bench.value("queue_items"), bench.value("queue_tokens")) == (2, 5)
    bench.batcher.cancel(waiting)
    assert (bench.value("queue_items"), bench.value("queue_tokens")) == (0, 0)
    bench.model.hold.set()
    await collect(first)
    assert await collect(bench.batcher.submit(bench.engine, sequences(30), LATER)) == expected(30)
    assert all(20 not in own for batch in bench.model.batches for group in batch for own in group.candidates)
    assert bench.value("scored_candidates_total", result="cancelled") == 2


async def test_a_full_queue_says_when_to_come_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(tokens=20, items=3)
    first = await bench.occupy()
    kept = bench.batcher.submit(bench.engine, sequences(20, 21), LATER)
    with pytest.raises(Unavailable) as refused:
        bench.batcher.submit(bench.engine, sequences(30, 31), LATER)  # a fourth candidate
    assert refused.value.code is ErrorCode.REWARD_OVERLOADED
    assert refused.value.retry_after is not None and 1 <= refused.value.retry_after <= 60
    with pytest.raises(Unavailable):
        bench.batcher.submit(bench.engine, [Encoded((1,) * 14, (2, 3))], LATER)  # 5 + 16 tokens
    bench.model.hold.set()
    await collect(first)
    assert await collect(kept) == expected(20, 21)
    assert await collect(bench.batcher.submit(bench.engine, sequences(30, 31), LATER)) == expected(30, 31)
    assert bench.value("rejections_total", reason="queue_full") == 2


async def test_a_call_that_never_fits_is_told_so(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(tokens=20, items=3)
    with pytest.raises(TooLarge, match="fewer candidates"):
        bench.batcher.submit(bench.engine, sequences(1, 2, 3, 4), LATER)
    with pytest.raises(TooLarge):
        bench.batcher.submit(bench.engine, [Encoded((), (1,) * 21)], LATER)


async def test_retry_after_grows_with_what_waits(bench: Bench) -> None:
    assert bench.batcher.retry_after() == 1.0
    await bench.occupy()
    bench.batcher.pace._tokens, bench.batcher.pace._seconds = 1.0, 1.0  # tokens per second, as if measured
    bench.batcher.submit(bench.engine, sequences(*range(20, 40)), LATER)
    assert bench.batcher.retry_after() == 23.0
    bench.batcher.submit(bench.engine, sequences(*range(40, 90)), LATER)
    assert bench.batcher.retry_after() == 60.0


async def test_a_deadline_ends_the_wait_and_the_work(bench: Bench) -> None:
    first = await bench.occupy()
    late = bench.batcher.submit(bench.engine, sequences(20), Deadline.after(0.05))
    with pytest.raises(DeadlineExceeded):
        await collect(late)
    bench.model.hold.set()
    await collect(first)
    await collect(bench.batcher.submit(bench.engine, sequences(30), LATER))
    assert [batch[0].candidates for batch in bench.model.batches] == [((1,),), ((30,),)]
    assert bench.value("queue_items") == 0


async def test_a_long_call_comes_in_parts_and_lets_others_in_between(bench: Bench) -> None:
    first = await bench.occupy()
    long = bench.batcher.submit(bench.engine, [Encoded(PROMPT, (20 + i,) * 30) for i in range(4)], LATER)
    short = bench.batcher.submit(bench.engine, sequences(1), LATER)
    bench.model.hold.set()
    parts = [len(part.scores) async for part in long.parts()]
    assert parts == [2, 2]
    assert await collect(short) == expected(1)
    assert [len(batch[0].candidates) for batch in bench.model.batches] == [1, 3, 2], "the short one fitted in"
    await collect(first)


async def test_calls_run_on_the_engines_thread_between_batches(bench: Bench) -> None:
    import threading

    await collect(bench.batcher.submit(bench.engine, sequences(1), LATER))
    assert {await bench.batcher.call(threading.get_ident)} == bench.model.threads

    def fail() -> None:
        raise ValueError("told so")

    with pytest.raises(ValueError, match="told so"):
        await bench.batcher.call(fail)
    assert await collect(bench.batcher.submit(bench.engine, sequences(2), LATER)) == expected(2)


async def test_closing_fails_what_waits_and_finishes_what_runs(bench: Bench) -> None:
    running = await bench.occupy()
    waiting = bench.batcher.submit(bench.engine, sequences(20), LATER)
    closing = asyncio.ensure_future(asyncio.to_thread(bench.batcher.close))
    with pytest.raises(ServiceError) as stopped:
        await collect(waiting)
    assert stopped.value.code is ErrorCode.DRAINING
    bench.model.hold.set()
    assert await collect(running) == expected(1)
    await closing
    with pytest.raises(Unavailable):
        bench.batcher.submit(bench.engine, sequences(1), LATER)
    with pytest.raises(Unavailable):
        await bench.batcher.call(lambda: None)


async def test_an_idle_batcher_uses_no_time(bench: Bench) -> None:
    import time

    await collect(bench.batcher.submit(bench.engine, sequences(1), LATER))

    async def used() -> float:
        before = time.process_time()
        await asyncio.sleep(0.3)
        return time.process_time() - before

    assert min([await used() for _ in range(3)]) < 0.05  # what else is in this process works now and then
