"""What goes into a pass, and who is let in: whole candidates and live cells together, on a model of microseconds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from reward.models import ArithmeticModel, score_of

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, ServiceError, Unavailable
from acemath_reward import seats
from acemath_reward.admission import QueueLimits
from acemath_reward.batcher import Batcher
from acemath_reward.batching import Encoded
from acemath_reward.metrics import RewardMetrics
from acemath_reward.pace import SMALLEST_PASS, Pace
from acemath_reward.seats import Outcome, Peeked, Seat
from acemath_reward.tickets import Engine, Ticket

LATER = Deadline.after(3600)
PROMPT = (5, 6, 7)


class Bench:
    """A batcher whose passes hold 64 tokens, and cells of 8."""

    def __init__(self) -> None:
        self.batcher = Batcher(QueueLimits(10_000, 1000), RewardMetrics(CollectorRegistry()))
        self.model = ArithmeticModel(max_tokens=5000)
        self.engine = Engine("m@1", self.model, batch_tokens=64)
        self.heard: asyncio.Queue[tuple[int | None, Outcome]] = asyncio.Queue()
        self.batcher.start()

    def post(self, *candidates: tuple[int, ...]) -> Ticket:
        return self.batcher.submit(self.engine, [Encoded(PROMPT, own) for own in candidates], LATER)

    def open(self, prompt: tuple[int, ...] = PROMPT) -> Seat:
        return self.batcher.open(self.engine, prompt, LATER, lambda index, found: self.heard.put_nowait((index, found)))

    async def hold(self) -> Ticket:
        self.model.hold.clear()
        ticket = self.post((1,))
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=60)
        return ticket

    async def hear(self) -> tuple[int | None, Outcome]:
        async with asyncio.timeout(20):
            return await self.heard.get()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(seats, "HEAD_START", 60.0)  # a second passes on a busy machine before all is handed over
    made = Bench()
    yield made
    made.model.hold.set()
    made.batcher.close()


async def scores(ticket: Ticket) -> list[float]:
    found = {position: score async for part in ticket.parts() for position, score in part.scores}
    return [found[position] for position in sorted(found)]


async def test_a_live_candidate_is_computed_as_it_comes(bench: Bench) -> None:
    seat = bench.open()
    for token in range(20, 40):
        bench.batcher.extend(seat, 3, [token])
    bench.batcher.finish(seat, 3)
    assert await bench.hear() == (3, score_of(PROMPT, tuple(range(20, 40))))
    assert bench.model.passes[0][0] == PROMPT
    assert seat.waiting == 0
    bench.batcher.leave(seat)


async def test_whole_candidates_and_live_cells_share_a_pass(bench: Bench) -> None:
    held, seat = await bench.hold(), bench.open()
    bench.batcher.extend(seat, 0, range(20, 31))
    ticket = bench.post((9, 9))
    bench.model.hold.set()
    assert await scores(ticket) == [score_of(PROMPT, (9, 9))]
    await scores(held)
    assert bench.model.passes[1] == [PROMPT, (9, 9), PROMPT, tuple(range(20, 28))]
    bench.batcher.leave(seat)


async def test_a_finished_candidate_goes_before_cells_that_nobody_waits_for(bench: Bench) -> None:
    held, slow, quick = await bench.hold(), bench.open(()), bench.open(())
    bench.batcher.extend(slow, 0, range(100, 150))
    bench.batcher.extend(quick, 0, [7])
    bench.batcher.finish(quick, 0)
    bench.model.hold.set()
    assert await bench.hear() == (0, score_of((), (7,)))
    await scores(held)
    assert bench.model.passes[1] == [(7,)], "by itself, so that the pass is short"
    for seat in (slow, quick):
        bench.batcher.leave(seat)


async def test_a_peek_is_waited_for_and_goes_behind_what_is_finished(bench: Bench) -> None:
    held, peeked, quick = await bench.hold(), bench.open(()), bench.open(())
    bench.batcher.extend(peeked, 0, range(100, 121))
    bench.batcher.peek(peeked, 0, [9])
    assert peeked.waiting == 21 + 6, "the candidate's, and what the peek computes beside them"
    bench.batcher.extend(quick, 0, [7])
    bench.batcher.finish(quick, 0)
    bench.model.hold.set()
    assert await bench.hear() == (0, score_of((), (7,)))
    assert await bench.hear() == (0, Peeked(score_of((), (*range(100, 121), 9))))
    await scores(held)
    cells = [tuple(range(100, 108)), tuple(range(108, 116))]
    assert bench.model.passes[1:] == [[(7,), *cells], [(*range(116, 121), 9)]], "whole cells first, and kept"
    assert peeked.waiting == 5
    for seat in (peeked, quick):
        bench.batcher.leave(seat)


async def test_what_waited_longer_than_the_head_start_goes_first(bench: Bench) -> None:
    held, slow, quick = await bench.hold(), bench.open(()), bench.open(())
    bench.batcher.extend(slow, 0, range(100, 150))
    slow._since[0] -= seats.HEAD_START + 1
    bench.batcher.extend(quick, 0, [7])
    bench.batcher.finish(quick, 0)
    bench.model.hold.set()
    await bench.hear()
    await scores(held)
    assert bench.model.passes[1][0] == tuple(range(100, 108)) and (7,) in bench.model.passes[1]
    for seat in (slow, quick):
        bench.batcher.leave(seat)


async def test_many_long_candidates_of_one_caller_do_not_hold_up_anothers_one(bench: Bench) -> None:
    held = await bench.hold()
    long = bench.post(*[(20 + i,) * 60 for i in range(30)])
    short = bench.post((9,))
    bench.model.hold.set()
    assert await scores(short) == [score_of(PROMPT, (9,))]
    at = next(i for i, cells in enumerate(bench.model.passes) if (9,) in cells)
    assert at <= 2, "with or behind the first of the long ones"
    assert len(await scores(long)) == 30
    await scores(held)


async def test_a_call_that_would_be_late_is_refused_at_once(bench: Bench) -> None:
    held = await bench.hold()
    bench.batcher.pace._tokens, bench.batcher.pace._seconds = 100.0, 1.0
    many = bench.post(*[(20 + i,) * 50 for i in range(20)])  # ten seconds
    with pytest.raises(Unavailable) as refused:
        bench.batcher.submit(bench.engine, [Encoded(PROMPT, (3,) * 2000)], Deadline.after(20))
    assert refused.value.code is ErrorCode.REWARD_OVERLOADED and refused.value.retry_after == 11
    with pytest.raises(Unavailable):
        bench.batcher.open(bench.engine, (1,) * 500, Deadline.after(1), lambda index, found: None)
    bench.batcher.submit(bench.engine, [Encoded(PROMPT, (3,))], Deadline.after(20))
    bench.batcher.cancel(many)
    bench.batcher.submit(bench.engine, [Encoded(PROMPT, (3,) * 500)], Deadline.after(20))
    bench.model.hold.set()
    await scores(held)


async def test_leaving_frees_what_waits(bench: Bench) -> None:
    held, seat = await bench.hold(), bench.open()
    bench.batcher.extend(seat, 0, range(20, 60))
    assert seat.waiting == 43
    bench.batcher.leave(seat)
    bench.batcher.leave(seat)
    assert seat.waiting == bench.model.live_bytes == 0
    bench.model.hold.set()
    await scores(held)
    assert await scores(bench.post((4,))) == [score_of(PROMPT, (4,))]
    assert all(ids[:2] != (20, 21) for cells in bench.model.passes for ids in cells)


async def test_a_number_that_is_none_fails_its_candidate_only(bench: Bench) -> None:
    bench.model.answer = lambda prompt, own: math.nan if own == (66,) else score_of(prompt, own)
    seat = bench.open()
    for candidate, token in enumerate((66, 67)):
        bench.batcher.extend(seat, candidate, [token])
        bench.batcher.finish(seat, candidate)
    outcomes = dict([await bench.hear(), await bench.hear()])
    assert isinstance(outcomes[0], ServiceError) and outcomes[1] == score_of(PROMPT, (67,))
    bench.batcher.leave(seat)


async def test_stopping_tells_the_sessions(bench: Bench) -> None:
    bench.open()
    await asyncio.to_thread(bench.batcher.close)
    index, outcome = await bench.hear()
    assert index is None and isinstance(outcome, Unavailable) and outcome.code is ErrorCode.DRAINING


async def test_pieces_that_complete_no_cell_wake_nobody(bench: Bench) -> None:
    seat = bench.open()
    assert await asyncio.to_thread(bench.model.entered.acquire, timeout=60)
    for _ in range(8):
        bench.batcher.extend(seat, 0, [4])
        assert seat not in bench.batcher._roused
    bench.batcher.extend(seat, 0, [4])
    assert await asyncio.to_thread(bench.model.entered.acquire, timeout=60)
    assert bench.model.passes == [[PROMPT], [(4,) * 8]]
    bench.batcher.leave(seat)


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(0.001, 10)), min_size=1, max_size=30))
def test_the_pace_lies_between_the_slowest_and_the_fastest_pass(passes: list[tuple[int, float]]) -> None:
    pace = Pace()
    assert not pace.measured
    for tokens, seconds in passes:
        pace.note(tokens, seconds)
    speeds = [max(tokens, SMALLEST_PASS) / seconds for tokens, seconds in passes]
    assert min(speeds) * 0.999 <= pace.tokens_per_second <= max(speeds) * 1.001
