"""The limit of all gateways on a real server of the Redis protocol: exact counts, and every way to lose it."""

import asyncio
import time

import pytest
from gateway.opened_stores import LONG, come_free, free_places, stores

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.adapters import redis_limit
from acemath_gateway.ports import LimitOutcome
from doubles.gateway_app import eventually

HOLDS = "acemath:limit:sequences"


@pytest.fixture
def hasty(monkeypatch):
    """Asserting again takes a twentieth of a second instead of five."""
    monkeypatch.setattr(redis_limit, "ASSERT_SECONDS", 0.05)


def lifetimes_ms(valkey) -> list[float]:
    """How long each hold still lives, by the server's clock."""
    seconds, micros = (int(part) for part in valkey.ask("TIME").split(b"\r\n")[2::2])
    scores = valkey.ask(f"ZRANGE {HOLDS} 0 -1 WITHSCORES").split(b"\r\n")[4::4]
    return [float(score) - 1000 * seconds - micros / 1000 for score in scores]


async def test_the_limit_is_exact_over_two_gateways(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        async with a.limit.hold("1", 5, Deadline.after(LONG)) as outcome:
            assert outcome is LimitOutcome.SHARED
            with pytest.raises(Unavailable) as full:
                async with b.limit.hold("2", 4, Deadline.after(LONG)):
                    pass
            assert full.value.code is ErrorCode.OVERLOADED and full.value.retry_after
            async with b.limit.hold("3", 3, Deadline.after(LONG)):
                assert await free_places(a.limit) == 0
        await come_free(a.limit, 8)


async def test_the_limit_moves_and_what_is_held_stays(valkey):
    places = 8
    async with stores(valkey.url, shared_max=lambda: places) as a, stores(valkey.url, shared_max=lambda: places) as b:
        async with a.limit.hold("1", 6, Deadline.after(LONG)):
            places = 4
            with pytest.raises(Unavailable, match="all 4 places"):
                async with b.limit.hold("2", 1, Deadline.after(LONG)):
                    pass
            places = 9
            assert await free_places(b.limit) == 3
        places = 4
        await come_free(b.limit, 4)


async def test_two_hundred_racing_requests_never_overbook(valkey):
    held = most = granted = 0

    async def one(limit, number: int) -> None:
        nonlocal held, most, granted
        size = 1 + number % 3
        try:
            async with limit.hold(str(number), size, Deadline.after(LONG)):
                held, granted = held + size, granted + 1
                most = max(most, held)
                await asyncio.sleep(0.001)
                held -= size
        except Unavailable:
            await asyncio.sleep(0.001)

    async with stores(valkey.url) as a, stores(valkey.url) as b:
        for turn in range(5):
            await asyncio.gather(*(one((a, b)[i % 2].limit, turn * 40 + i) for i in range(40)))
            await come_free((a, b)[turn % 2].limit, 8)
        assert 0 < most <= 8 and granted >= 5 * 3  # eight places are two of three and one of two at the least


async def test_a_cancelled_request_gives_its_places_back(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        held = asyncio.Event()

        async def work() -> None:
            async with a.limit.hold("1", 8, Deadline.after(LONG)):
                held.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await held.wait()
        task.cancel()
        await asyncio.wait({task})
        await come_free(b.limit, 8)


async def test_a_killed_gateways_places_come_back_by_themselves(valkey):
    async with stores(valkey.url) as alive, stores(valkey.url, keep=False) as killed:
        hold = killed.limit.hold("1", 8, Deadline.after(LONG))
        await hold.__aenter__()
        assert await free_places(alive.limit) == 0
        (lifetime,) = lifetimes_ms(valkey)
        assert 0 < lifetime <= 1000 * redis_limit.LIFETIME_SECONDS
        valkey.ask(f"ZINCRBY {HOLDS} {-lifetime} {holds_of(valkey)[0]}")  # as if that had passed
        await come_free(alive.limit, 8)
        await hold.__aexit__(None, None, None)


async def test_a_hold_that_is_kept_outlives_its_first_lifetime(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b, a.limit.hold("1", 8, Deadline.after(LONG)):
        (lifetime,) = lifetimes_ms(valkey)
        assert 0 < lifetime <= 1000 * redis_limit.LIFETIME_SECONDS
        valkey.ask(f"ZINCRBY {HOLDS} {-lifetime + 500} {holds_of(valkey)[0]}")  # nearly over
        await eventually(lambda: lifetimes_ms(valkey)[0] > 1000)
        assert await free_places(b.limit) == 0


def holds_of(valkey) -> list[str]:
    return [member.decode() for member in valkey.ask(f"ZRANGE {HOLDS} 0 -1").split(b"\r\n")[2::2]]


async def test_the_end_of_one_request_says_nothing_of_the_others(valkey, monkeypatch):
    async with stores(valkey.url) as a, a.limit.hold("stays", 1, Deadline.after(LONG)):
        said, run = [], a.limit._link.run

        async def noted(script, keys, args, **options):
            said.append([str(arg) for arg in args])
            return await run(script, keys, args, **options)

        monkeypatch.setattr(a.limit._link, "run", noted)
        async with a.limit.hold("ends", 1, Deadline.after(LONG)):
            pass
        await eventually(lambda: not a.limit._released)
        assert len(said) == 2  # it was taken, and given back
        assert not any(arg.startswith("stays") for args in said for arg in args)


async def test_a_dead_gateways_hold_ends_with_its_requests_deadline_when_that_is_sooner(valkey):
    async with stores(valkey.url, keep=False) as dead, dead.limit.hold("1", 8, Deadline.after(5.0)):
        assert all(0 < lifetime <= 6000 for lifetime in lifetimes_ms(valkey))


async def test_a_flushed_server_counts_right_again(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b, a.limit.hold("1", 8, Deadline.after(LONG)):
        valkey.flush()
        await eventually(lambda: holds_of(valkey))
        assert await free_places(b.limit) == 0


async def test_without_the_server_each_gateway_goes_by_its_own_limit(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b, a.limit.hold("1", 2, Deadline.after(LONG)):
        valkey.stop()
        async with a.limit.hold("2", 2, Deadline.after(LONG)) as outcome:
            assert outcome is LimitOutcome.LOCAL
            with pytest.raises(Unavailable):  # two from before and two new ones: four is its own limit
                async with a.limit.hold("3", 1, Deadline.after(LONG)):
                    pass
        assert await free_places(b.limit) == 4
        async with b.limit.hold("larger than the local limit", 6, Deadline.after(LONG)):
            assert await free_places(b.limit) == 0


async def test_what_was_granted_meanwhile_is_counted_when_the_server_is_back(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        valkey.stop()
        async with a.limit.hold("1", 4, Deadline.after(LONG)):
            async with b.limit.hold("2", 4, Deadline.after(LONG)):
                valkey.start()
                await eventually(lambda: a.limit._link.up and b.limit._link.up)
                assert await free_places(a.limit) == 0
            await come_free(a.limit, 4)


async def test_what_was_released_meanwhile_is_given_back_when_the_server_is_back(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        async with a.limit.hold("1", 8, Deadline.after(LONG)):
            valkey.stop()
        await eventually(lambda: not a.limit._link.up)
        valkey.start()  # its append-only file still holds the eight
        await eventually(lambda: a.limit._link.up)
        await come_free(b.limit, 8)


async def test_an_absent_server_costs_microseconds(valkey):
    async with stores(valkey.url, local_max=64) as a:
        valkey.stop()
        async with a.limit.hold("0", 1, Deadline.after(LONG)):
            pass
        started = time.thread_time()
        for number in range(1000):
            async with a.limit.hold(str(number), 1, Deadline.after(LONG)):
                pass
        assert (time.thread_time() - started) / 1000 < 0.001
