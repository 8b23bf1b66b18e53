"""What waits on a live connection goes in as few messages as hold it, in order, and nothing is lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from acemath_gateway.adapters import live_outbox
from acemath_gateway.adapters.live_outbox import Outbox


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=30))
def test_everything_comes_out_in_order_and_in_bounded_messages(sizes: list[int]) -> None:
    frames = [f"{number:04}" + "x" * size for number, size in enumerate(sizes)]

    outbox, messages = Outbox(max_chars=10_000_000), list[list[str]]()
    assert outbox.put(*frames)
    while message := outbox.take():
        messages.append(message)
    assert [frame for message in messages for frame in message] == frames
    assert all(sum(map(len, message[:-1])) < live_outbox._MESSAGE_CHARS for message in messages)


async def test_whoever_waits_is_told_of_what_comes() -> None:
    outbox = Outbox(max_chars=10)
    waiting = asyncio.create_task(outbox.filled())
    await asyncio.sleep(0)
    assert not waiting.done() and outbox.take() == []
    assert outbox.put("a")
    await asyncio.wait_for(waiting, 5)
    await outbox.filled()
    assert outbox.take() == ["a"]


async def test_room_comes_back_when_frames_are_taken() -> None:
    outbox = Outbox(max_chars=10)
    assert outbox.put("12345", "67890") and not outbox.put("1")
    assert outbox.take() == ["12345", "67890"]
    assert outbox.put("1234567890")


async def test_an_opening_comes_first_and_what_is_forgotten_never() -> None:
    outbox = Outbox(max_chars=10)
    assert outbox.put("1234567890")
    outbox.put_first("opening")  # whether there is room or not
    assert not outbox.put("1")
    assert outbox.take() == ["opening", "1234567890"]
    assert outbox.put("left")
    outbox.clear()
    assert outbox.put("1234567890") and outbox.take() == ["1234567890"]
