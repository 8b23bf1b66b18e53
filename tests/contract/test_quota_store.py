"""What every `QuotaStore` does: the double in memory and the real one on a real server."""

import itertools
from contextlib import asynccontextmanager

import pytest
from contract.shared_redis import shared_redis

from acemath_core.admin import Quotas
from acemath_core.deadline import Deadline
from acemath_gateway.keys.quotas import QuotaKind, Visit
from doubles.gateway_app import eventually_true
from doubles.quotas import MemoryQuotas

_numbers = itertools.count()


@asynccontextmanager
async def in_memory(tmp_path):
    store = MemoryQuotas()

    def stop() -> None:
        store.away = True

    yield store, stop


@asynccontextmanager
async def on_redis(tmp_path):
    async with shared_redis(tmp_path) as (shared, server):
        yield shared.quotas, server.stop


@pytest.fixture(params=[in_memory, on_redis], ids=["memory", "redis"])
def opened(request, tmp_path):
    return request.param(tmp_path)


def _visit(sequences: int = 1, key: str = "key-0000000000000000", **quotas: int) -> Visit:
    return Visit(str(next(_numbers)), key, Quotas(**quotas), sequences, Deadline.after(30))


async def _left(store, tokens: bool = False, **quotas: int) -> int:
    """What another visit would find, asked for by a key that may do nothing: it changes nothing."""
    standing = await store.enter(_visit(2, sequences_in_flight=1, **quotas))
    assert standing.refused is QuotaKind.SEQUENCES
    return standing.tokens if tokens else standing.requests


async def test_a_minutes_worth_of_requests_may_come_at_once_and_no_more(opened):
    async with opened as (store, _):
        found = [await store.enter(_visit(requests_per_minute=3)) for _ in range(4)]
        assert [one.refused for one in found] == [None, None, None, QuotaKind.REQUESTS]
        assert [one.requests for one in found] == [2, 1, 0, 0]
        assert 15 < found[3].retry_seconds <= 20 and 55 < found[3].requests_reset_seconds <= 60
        other = await store.enter(_visit(key="key-1111111111111111", requests_per_minute=3))
        assert other.refused is None


async def test_tokens_are_paid_afterwards_and_may_be_owed(opened):
    async with opened as (store, _):
        first, second = (_visit(tokens_per_minute=60) for _ in range(2))
        assert (await store.enter(first)).tokens == 60
        assert (await store.enter(second)).refused is None
        store.leave(first, tokens=50, started=True)
        store.leave(second, tokens=70, started=True)

        async def owed() -> bool:
            return -61 < await _left(store, tokens=True, tokens_per_minute=60) < -45  # it fills by one a second

        await eventually_true(owed)
        refused = await store.enter(_visit(tokens_per_minute=60))
        assert refused.refused is QuotaKind.TOKENS and 40 < refused.retry_seconds <= 61


async def test_a_bucket_fills_while_time_goes_by(opened):
    async with opened as (store, _):
        visit = _visit(tokens_per_minute=60_000)
        await store.enter(visit)
        store.leave(visit, tokens=60_100, started=True)

        async def owing() -> bool:
            return await _left(store, tokens=True, tokens_per_minute=60_000) < 60_000

        async def let_in() -> bool:
            return (await store.enter(_visit(tokens_per_minute=60_000))).refused is None

        await eventually_true(owing)
        await eventually_true(let_in)


async def test_sequences_are_held_until_the_visit_is_over(opened):
    async with opened as (store, _):
        first = _visit(5, sequences_in_flight=8)
        assert (await store.enter(first)).refused is None
        refused = await store.enter(_visit(4, sequences_in_flight=8))
        assert refused.refused is QuotaKind.SEQUENCES and refused.retry_seconds > 0
        assert (await store.enter(_visit(3, sequences_in_flight=8))).refused is None
        store.leave(first, tokens=10, started=True)

        async def let_in() -> bool:
            return (await store.enter(_visit(5, sequences_in_flight=8))).refused is None

        await eventually_true(let_in)


async def test_what_was_not_started_gets_its_request_back_and_what_was_refused_costs_none(opened):
    async with opened as (store, _):
        visit = _visit(requests_per_minute=2, sequences_in_flight=1)
        await store.enter(visit)
        for _ in range(3):
            assert await _left(store, requests_per_minute=2) == 1
        store.leave(visit, tokens=0, started=False)

        async def whole() -> bool:
            return await _left(store, requests_per_minute=2) == 2

        await eventually_true(whole)


async def test_while_the_store_is_away_nobody_is_refused(opened):
    async with opened as (store, stop):
        assert (await store.enter(_visit(requests_per_minute=1))).refused is None
        stop()
        for _ in range(3):
            visit = _visit(requests_per_minute=1)
            assert await store.enter(visit) is None
            store.leave(visit, tokens=5, started=True)
