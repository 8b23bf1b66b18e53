"""The account of what kept answers take, on a real server of the Redis protocol."""

from __future__ import annotations

import random

from gateway.opened_stores import stores

SIZES, LIST = "acemath:answers:sizes", "acemath:answers"


def account(valkey) -> tuple[int, int]:
    """The sum that is kept, and the sum of the sizes that are listed."""
    total, *more = numbers(valkey.ask(f'HGET {SIZES} ""'))
    assert not more
    return total, sum(numbers(valkey.ask(f"HVALS {SIZES}"))) - total


def numbers(reply: bytes) -> list[int]:
    return [int(line) for line in reply.split(b"\r\n") if line and line[:1] not in b"$*"]


async def test_the_sum_is_that_of_the_sizes_whatever_was_put(valkey):
    draw = random.Random(1)
    async with stores(valkey.url) as one:
        for _ in range(200):
            await one.answers.put(str(draw.randrange(30)), b"x" * draw.randrange(65_000), "r-1")
            total, listed = account(valkey)
            assert total == listed <= 2**20


async def test_a_list_that_was_lost_does_not_close_the_store_for_ever(valkey):
    async with stores(valkey.url) as one:
        for number in range(30):
            await one.answers.put(str(number), b"x" * 60_000, "r-1")
        valkey.ask(f"DEL {LIST}")
        for number in range(30, 60):
            await one.answers.put(str(number), b"x" * 60_000, "r-1")
        assert await one.answers.get("59") is not None
        total, listed = account(valkey)
        assert 0 < total == listed <= 2**20
