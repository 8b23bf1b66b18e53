from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.deadline import DEADLINE_HEADER, Deadline
from acemath_core.errors import DeadlineExceeded, InvalidRequest


def test_remaining_never_goes_below_zero() -> None:
    assert Deadline.after(-5).remaining() == 0.0
    assert Deadline.after(-5).expired()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_was_ended_by_it_finds_it_expired(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def one() -> bool:
        deadline = Deadline.after(random.uniform(0.001, 0.02))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(deadline.remaining()):
                await asyncio.Event().wait()
        return deadline.expired()

    async def many() -> bool:
        return all([await one() for _ in range(100)])

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(many())


def test_one_with_time_left_is_not() -> None:
    assert not Deadline.after(60).expired()


def test_a_time_out_that_came_a_moment_too_soon_is_one_at_the_deadline() -> None:
    assert Deadline(time.monotonic() + 0.002).expired()


def test_check_raises_and_names_what_was_not_done() -> None:
    with pytest.raises(DeadlineExceeded, match="before scoring"):
        Deadline.after(0).check("scoring")


@given(st.floats(min_value=0, allow_infinity=False).map(str) | st.integers(0, 10**300).map(str) | st.none())
def test_no_header_can_move_the_deadline_past_the_default(value: str | None) -> None:
    assert Deadline.from_header(value, default_seconds=3).remaining() <= 3


@pytest.mark.parametrize("value", ["abc", "", "1 s", "nan", "0x10", "1,5", "-1", "-0.5", "inf", "-inf", "1e999"])
def test_a_header_that_is_no_number_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequest, match="number of milliseconds") as refused:
        Deadline.from_header(value, default_seconds=3)
    assert refused.value.param == DEADLINE_HEADER


def test_the_header_carries_what_is_left() -> None:
    sent = Deadline.after(2.0).header()
    received = Deadline.from_header(sent[DEADLINE_HEADER], default_seconds=60)
    assert 1.5 < received.remaining() <= 2.0
