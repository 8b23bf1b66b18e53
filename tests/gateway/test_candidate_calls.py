"""Many calls as one stream: what comes of each comes of all, and of who is stopped only what was generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acemath_gateway.adapters.candidate_calls import CandidateCalls
from acemath_gateway.adapters.http import CallFailed
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import CandidateFailed, CandidateFinished, PolicyEvent, TokensGenerated
from doubles.servers import settled


class Gone(Exception):
    """What all of them failed with, in the words of a port."""


PLANS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ends", "breaks"])), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.sets(st.integers(0, 5)))
async def test_what_comes_of_each_call_comes_of_all(plans: list[tuple[int, str]], stops: set[int]) -> None:
    """Each call gives so many pieces, then ends or breaks; some are stopped at the first event of all."""
    before = asyncio.all_tasks()

    async def one(index: int) -> AsyncIterator[PolicyEvent]:
        pieces, end = plans[index]
        for step in range(pieces):
            await asyncio.sleep(0)
            yield TokensGenerated(0, f"{step}", (step,))
        if end == "ends":
            yield CandidateFailed(0, "abort")
        elif not pieces:
            raise CallFailed(CallResult.BROKEN, "broke")

    calls = CandidateCalls(one, len(plans), Gone)  # type: ignore[arg-type]
    heard: list[PolicyEvent] = []
    nothing = all(plan == (0, "breaks") for plan in plans)
    try:
        async for event in calls.events():
            assert not heard or event.index not in stops or isinstance(event, TokensGenerated)
            heard.append(event)
            for index in stops & set(range(len(plans))):
                calls.stop(index)
    except Gone:
        assert nothing
    finally:
        await calls.close()
    assert asyncio.all_tasks() == before
    for index, (pieces, end) in enumerate(plans):
        if nothing or index in stops:
            continue
        mine = [event for event in heard if event.index == index]
        assert [event.text for event in mine if isinstance(event, TokensGenerated)] == [str(i) for i in range(pieces)]
        ended = [event.reason for event in mine if isinstance(event, CandidateFailed)]
        assert ended == (["abort"] if end == "ends" else [] if pieces else ["broken"])


@pytest.mark.parametrize("pieces", [3, 400], ids=["ended", "waiting for room"])
async def test_what_was_generated_of_a_stopped_candidate_is_still_told_and_its_end_is_not(pieces: int) -> None:
    made = [0, 0]

    async def one(index: int) -> AsyncIterator[PolicyEvent]:
        for step in range(pieces):
            made[index] += 1
            yield TokensGenerated(0, "", (step,))
        yield CandidateFinished(0, "", (), None)  # type: ignore[arg-type]

    calls = CandidateCalls(one, 2, Gone)  # type: ignore[arg-type]
    async with aclosing(calls.events()) as events:
        heard = [await anext(events)]
        await settled()
        calls.stop(1)
        heard += [event async for event in events]
    await calls.close()
    tokens = [sum(e.index == index and isinstance(e, TokensGenerated) for e in heard) for index in range(2)]
    assert tokens == made and made[0] == pieces
    assert [event.index for event in heard if isinstance(event, CandidateFinished)] == [0]


async def test_a_reader_that_is_slow_holds_up_the_calls_and_not_the_memory() -> None:
    made = 0

    async def one(index: int) -> AsyncIterator[PolicyEvent]:
        nonlocal made
        for step in range(1000):
            made += 1
            yield TokensGenerated(0, "", (step,))
        yield CandidateFinished(0, "", (), None)  # type: ignore[arg-type]

    calls = CandidateCalls(one, 2, Gone)  # type: ignore[arg-type]
    async with aclosing(calls.events()) as events:
        await anext(events)
        await settled()
        assert made < 300
        assert len([event async for event in events]) == 2001
    await calls.close()
