"""What every `SequenceLimit` and `IdempotencyStore` does: the doubles in memory and the real ones on a real server."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from contract.shared_redis import shared_redis

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.ports import Stored
from doubles.gateway_app import eventually_true
from doubles.stores import MemoryIdempotency, MemoryLimit

PLACES = 8


@asynccontextmanager
async def in_memory(tmp_path):
    yield MemoryLimit(PLACES), MemoryIdempotency()


@asynccontextmanager
async def on_redis(tmp_path):
    async with shared_redis(tmp_path, max_sequences_in_flight=PLACES, local_max_sequences=1) as (shared, _):
        yield shared.limit, shared.idempotency


@pytest.fixture(params=[in_memory, on_redis], ids=["memory", "redis"])
def stores(request, tmp_path):
    return request.param(tmp_path)


def soon() -> Deadline:
    return Deadline.after(30)


async def test_places_are_held_for_the_block_and_not_longer(stores):
    async with stores as (limit, _):
        for _ in range(3):
            async with limit.hold("a", 5, soon()), limit.hold("b", 3, soon()):
                with pytest.raises(Unavailable) as full:
                    async with limit.hold("c", 1, soon()):
                        pass
                assert full.value.code is ErrorCode.OVERLOADED and full.value.retry_after is not None


async def test_places_come_back_when_the_block_fails(stores):
    async with stores as (limit, _):
        with pytest.raises(RuntimeError):
            async with limit.hold("a", PLACES, soon()):
                raise RuntimeError
        async with limit.hold("b", PLACES, soon()):
            pass


async def test_one_request_may_hold_twice(stores):
    async with stores as (limit, _), limit.hold("a", 4, soon()), limit.hold("a", 4, soon()):
        with pytest.raises(Unavailable):
            async with limit.hold("a", 1, soon()):
                pass


async def test_what_is_larger_than_all_places_is_alone(stores):
    async with stores as (limit, _):
        async with limit.hold("a", PLACES + 1, soon()):
            with pytest.raises(Unavailable):
                async with limit.hold("b", 1, soon()):
                    pass
        async with limit.hold("c", 1, soon()):
            with pytest.raises(Unavailable):
                async with limit.hold("d", PLACES + 1, soon()):
                    pass


async def test_spare_places_are_three_quarters(stores):
    async with stores as (limit, _):
        async with limit.hold("a", 6, soon(), spare_only=True):
            with pytest.raises(Unavailable):
                async with limit.hold("b", 1, soon(), spare_only=True):
                    pass
            async with limit.hold("c", 2, soon()):
                pass
        async with limit.hold("d", PLACES, soon(), spare_only=True):  # larger than the share: alone
            pass


async def test_places_that_somebody_was_refused_are_not_spare(stores):
    async with stores as (limit, _), limit.hold("a", 4, soon()):
        with pytest.raises(Unavailable):
            async with limit.hold("b", 5, soon()):
                pass
        with pytest.raises(Unavailable):
            async with limit.hold("c", 1, soon(), spare_only=True):
                pass
        async with limit.hold("d", 1, soon()):
            pass

        async def spare() -> bool:
            with suppress(Unavailable):
                async with limit.hold("c", 1, soon(), spare_only=True):
                    return True
            return False

        await eventually_true(spare)  # after half a second


async def test_a_key_is_claimed_once_and_answered_afterwards(stores):
    async with stores as (_, keys):
        assert await keys.begin("k", "f", soon()) is None
        with pytest.raises(DeadlineExceeded):
            await keys.begin("k", "f", Deadline.after(0.1))
        await keys.finish("k", "f", Stored(200, b"answer"))
        assert await keys.begin("k", "f", soon()) == Stored(200, b"answer")
        assert await keys.begin("other", "f", soon()) is None


async def test_a_waiting_request_gets_the_answer(stores):
    async with stores as (_, keys):
        await keys.begin("k", "f", soon())
        waiting = asyncio.create_task(keys.begin("k", "f", soon()))
        await asyncio.sleep(0.05)
        await keys.finish("k", "f", Stored(200, b"answer"))
        assert await waiting == Stored(200, b"answer")


async def test_an_abandoned_key_can_be_claimed_again_with_any_body(stores):
    async with stores as (_, keys):
        await keys.begin("k", "f", soon())
        await keys.abandon("k", "f")
        assert await keys.begin("k", "g", soon()) is None


async def test_another_body_is_a_conflict(stores):
    async with stores as (_, keys):
        await keys.begin("k", "f", soon())
        for _ in range(2):
            with pytest.raises(Conflict) as conflict:
                await keys.begin("k", "g", soon())
            assert conflict.value.code is ErrorCode.IDEMPOTENCY_CONFLICT and conflict.value.should_retry is False
            await keys.finish("k", "f", Stored(200, b""))
