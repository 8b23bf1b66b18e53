"""A call that takes several passes: its prompt is computed once, and it holds up nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from reward.engine.drawing import engine_of, ids
from reward.models import POISON, ArithmeticModel, ArithmeticSession, cost, score_of

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, InternalError, Unavailable
from acemath_reward.admission import QueueLimits
from acemath_reward.batcher import Batcher
from acemath_reward.batching import Encoded
from acemath_reward.long_calls import is_long
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import LiveBudgetExceeded, PromptGroup, RewardModel, TokenIds
from acemath_reward.tickets import Engine, Ticket

LATER = Deadline.after(3600)
PASS = 64
LONG, SHORT = tuple(range(100)), (5, 6, 7)


def call(prompt: TokenIds, *owns: TokenIds) -> list[Encoded]:
    return [Encoded(prompt, own) for own in owns]


def owns(count: int, length: int) -> list[TokenIds]:
    return [tuple(range(20 + i, 20 + i + length)) for i in range(count)]


class Bench:
    """A batcher with its instruments."""

    def __init__(self, model: RewardModel) -> None:
        self.instruments = CollectorRegistry()
        self.batcher = Batcher(QueueLimits(100_000, 1000), RewardMetrics(self.instruments))
        self.engine = Engine("m@1", model, batch_tokens=PASS)
        self.batcher.start()

    def value(self, name: str, **labels: str) -> float:
        return self.instruments.get_sample_value(f"acemath_reward_{name}", labels) or 0.0

    def submit(self, sequences: Sequence[Encoded], deadline: Deadline = LATER) -> Ticket:
        return self.batcher.submit(self.engine, sequences, deadline)


@pytest.fixture
def model() -> Iterator[ArithmeticModel]:
    made = ArithmeticModel()
    yield made
    made.hold.set()


@pytest.fixture
def make(model: ArithmeticModel) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def start(of: RewardModel = model) -> Bench:
        made.append(Bench(of))
        return made[-1]

    yield start
    model.hold.set()
    for bench in made:
        bench.batcher.close()


async def collect(ticket: Ticket) -> list[float]:
    scores = {position: score async for part in ticket.parts() for position, score in part.scores}
    return [scores[position] for position in range(len(scores))]


def expected(sequences: Sequence[Encoded]) -> list[float]:
    return [score_of(one.prompt, one.own) for one in sequences]


@pytest.mark.parametrize(
    ("sequences", "long"),
    [
        (call(LONG, *owns(4, 8)), True),
        (call(SHORT, *owns(30, 8)), False),  # its prompt costs less again than kept
        (call(SHORT, tuple(range(200))), True),
        (call(LONG[:40], *owns(4, 10)), False),  # one pass, with its slack
    ],
)
def test_which_calls_are_long(model: ArithmeticModel, sequences: list[Encoded], long: bool) -> None:
    assert is_long(Engine("m@1", model, PASS), sequences, cost(sequences)) is long
    assert not is_long(Engine("m@1", model, 1), sequences, cost(sequences)), (
        "each candidate by itself: not free of its batch"
    )


async def test_the_prompt_is_computed_once(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench, sequences = make(), call(LONG, *owns(12, 20))
    ticket = bench.submit(sequences)
    assert await collect(ticket) == expected(sequences)
    assert sum(cell == LONG for batch in model.passes for cell in batch) == 1 and len(model.passes) > 4
    assert bench.value("prompt_tokens_saved_total") == 11 * len(LONG)
    assert ticket.queue_seconds is not None and ticket.compute_seconds > 0
    assert bench.value("live_cells_total") == 0, "nobody writes them"
    bench.batcher.cancel(ticket)
    assert model.sessions[0].closed and bench.value("queue_tokens") == 0


async def test_only_two_passes_are_handed_over_at_a_time(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    model.hold.clear()
    ticket = bench.submit(call(LONG, *owns(50, 20)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    assert model.sessions[0].held_bytes <= 2 * PASS + 20, "keys and values of the others are not held"
    model.hold.set()
    assert len(await collect(ticket)) == 50


async def test_a_short_call_steps_in(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    bench.batcher.pace.note(100, 10.0)  # so its later cells are due in some seconds only
    model.hold.clear()
    long = bench.submit(call(SHORT, tuple(range(250))))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    short = bench.submit(call(SHORT, (301,)))
    model.hold.set()
    assert await collect(short) == [score_of(SHORT, (301,))]
    assert await collect(long) == [score_of(SHORT, tuple(range(250)))]
    order = [index for index, batch in enumerate(model.passes) if (301,) in batch]
    assert order[0] < len(model.passes) - 1, "before the long one was done"


async def test_a_short_deadline_is_met_beside_a_long_call(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    """Only what is computed before it counts against a call, not all that a long one still has to do."""
    bench = make()
    model.hold.clear()
    bench.batcher.pace.note(1000, 1.0)
    long = bench.submit(call(LONG, *owns(300, 60)))  # eighteen seconds of work
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    short = bench.submit(call(SHORT, (301,)), Deadline.after(10))
    model.hold.set()
    assert await collect(short) == [score_of(SHORT, (301,))]
    assert len(await collect(long)) == 300


async def test_without_room_it_is_computed_as_others_are(
    make: Callable[..., Bench], model: ArithmeticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 0

    def full(self: ArithmeticSession, candidate: int, own: Sequence[int]) -> None:
        nonlocal kept
        kept += 1
        if kept > 3:
            raise LiveBudgetExceeded("full")
        self.own.setdefault(candidate, []).extend(own)

    monkeypatch.setattr(ArithmeticSession, "extend", full)
    sequences = call(LONG, *owns(12, 20))
    assert await collect(make().submit(sequences)) == expected(sequences)


async def test_a_caller_that_leaves_frees_what_it_held(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    model.hold.clear()
    ticket = bench.submit(call(LONG, *owns(30, 20)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    bench.batcher.cancel(ticket)
    assert model.sessions[0].closed and bench.value("queue_tokens") == 0
    model.hold.set()
    assert bench.value("scored_candidates_total", result="cancelled") == 30
    assert await collect(bench.submit(call(SHORT, (30,)))) == [score_of(SHORT, (30,))]


async def test_a_deadline_ends_it(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    model.hold.clear()
    ticket = bench.submit(call(LONG, *owns(30, 20)), Deadline.after(0.2))
    with pytest.raises(DeadlineExceeded):
        await collect(ticket)
    model.hold.set()
    assert await collect(bench.submit(call(SHORT, (30,)))) == [score_of(SHORT, (30,))]
    assert model.sessions[0].closed and bench.value("queue_tokens") == 0


async def test_what_fails_fails_alone(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    model.hold.clear()
    bad = bench.submit(call(LONG, *owns(4, 20), (POISON,)))
    good = bench.submit(call(tuple(range(1, 100)), *owns(6, 20)))
    model.hold.set()
    with pytest.raises(InternalError):
        await collect(bad)
    bench.batcher.cancel(bad)
    assert await collect(good) == expected(call(tuple(range(1, 100)), *owns(6, 20)))
    assert bench.value("scored_candidates_total", result="cancelled") == 0, "failed is not cancelled"


async def test_a_stop_tells_it(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    model.hold.clear()
    ticket = bench.submit(call(LONG, *owns(30, 20)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    closing = asyncio.create_task(asyncio.to_thread(bench.batcher.close))
    with pytest.raises(Unavailable):
        await collect(ticket)
    model.hold.set()
    await closing


async def test_scores_have_the_bits_that_they_have_alone(llama: Path, make: Callable[..., Bench]) -> None:
    engine, draw = engine_of(llama), random.Random(3)
    bench = make(engine)
    calls = [
        call(ids(length, length), *(ids(draw.randint(1, 120), 7 * length + i) for i in range(6)))
        for length in (0, 5, 60, 130, 150)
    ]
    assert sum(is_long(bench.engine, one, cost(one)) for one in calls) >= 3
    found = await asyncio.gather(*(collect(bench.submit(one)) for one in calls))
    alone = [[engine.score([PromptGroup(one.prompt, (one.own,))])[0][0] for one in sequences] for sequences in calls]
    assert found == alone
    assert engine.live_bytes > 0, "what it kept is free when the caller ends, not before"


async def test_an_idle_engine_refuses_nothing_for_its_speed(make: Callable[..., Bench], model: ArithmeticModel) -> None:
    bench = make()
    bench.batcher.pace.note(100, 1000.0)  # what was computed before was slow for reasons of its own
    sequences = call(SHORT, *owns(4, 8))
    assert await collect(bench.submit(sequences, Deadline.after(10))) == expected(sequences)
    bench.batcher.pace.note(100, 1000.0)
    model.hold.clear()
    held = bench.submit(call(SHORT, (30,)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)
    with pytest.raises(Unavailable, match="until this call would be done"):
        bench.submit(sequences, Deadline.after(20))
    model.hold.set()
    await collect(held)
