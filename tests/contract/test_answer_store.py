"""`AnswerStore` in memory and on Redis: so many bytes at most are kept for a while, and their loss is no error."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from contract.shared_redis import shared_redis

from acemath_core.errors import Unavailable
from doubles.gateway_app import eventually_true
from doubles.stores import MemoryAnswers

MEGABYTE = 2**20


@asynccontextmanager
async def in_memory(tmp_path, ttl_seconds):
    store = MemoryAnswers(ttl_seconds=ttl_seconds, total_bytes=MEGABYTE)

    def lose() -> None:
        store.away = True

    yield store, lose


@asynccontextmanager
async def on_redis(tmp_path, ttl_seconds):
    settings = {"answer_cache_seconds": ttl_seconds, "answer_cache_megabytes": 1}
    async with shared_redis(tmp_path, **settings) as (shared, server):
        yield shared.answers, server.stop


@pytest.fixture(params=[in_memory, on_redis], ids=["memory", "redis"])
def stores(request, tmp_path):
    return lambda ttl_seconds=60: request.param(tmp_path, ttl_seconds)


async def test_what_was_put_is_there_as_it_was_and_nothing_else_is(stores):
    async with stores() as (store, _):
        assert await store.get("a") is None
        await store.put("a", b'{"answer": "\xc3\xa4\\u0000"}', "r-1")
        kept = await store.get("a")
        assert (kept.body, kept.release) == (b'{"answer": "\xc3\xa4\\u0000"}', "r-1")
        assert 0 <= kept.age_seconds < 60
        assert await store.get("b") is None


async def test_the_later_answer_counts(stores):
    async with stores() as (store, _):
        for body in (b"1", b"2"):
            await store.put("a", body, "r-1")
        assert (await store.get("a")).body == b"2"


async def test_it_is_forgotten_when_its_time_is_up(stores):
    async with stores(ttl_seconds=1) as (store, _):
        await store.put("a", b"1", "r-1")

        async def gone() -> bool:
            return await store.get("a") is None

        await eventually_true(gone)
        assert await store.get("a") is None


async def test_all_together_never_take_more_than_so_many_bytes_and_the_oldest_go_first(stores):
    async with stores() as (store, _):
        sizes = [60_000, 20_000, 1] * 20
        for number, size in enumerate(sizes):
            await store.put(str(number), b"x" * size, "r-1")
        kept = [number for number in range(len(sizes)) if await store.get(str(number)) is not None]
        assert kept == list(range(kept[0], len(sizes)))
        assert 0.9 * MEGABYTE < sum(sizes[number] + 512 for number in kept) <= MEGABYTE


async def test_an_answer_that_is_put_again_takes_its_room_once(stores):
    async with stores() as (store, _):
        for _ in range(40):
            await store.put("a", b"x" * 60_000, "r-1")
            await store.put("b", b"y" * 60_000, "r-1")
        assert await store.get("a") is not None and await store.get("b") is not None


async def test_an_answer_that_is_too_large_is_not_kept(stores):
    async with stores() as (store, _):
        await store.put("a", b"x" * (64 * 1024 + 1), "r-1")
        await store.put("b", b"x" * 64 * 1024, "r-1")
        assert await store.get("a") is None and await store.get("b") is not None


async def test_away_is_said_to_who_asks_and_not_to_who_brings(stores):
    async with stores() as (store, lose):
        lose()
        await store.put("a", b"1", "r-1")
        with pytest.raises(Unavailable):
            await store.get("a")
