"""What every `KeyStore` does: the double in memory and the real one on a real server."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from contract.shared_redis import shared_redis

from acemath_core.admin import KeyChange, KeyRequest, KeyScope, Quotas
from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_gateway.keys.records import draw
from doubles.keys import MemoryKeys

WANTED = KeyRequest(name="a team", scopes=(KeyScope.SOLVE,), quotas=Quotas(requests_per_minute=5))


@asynccontextmanager
async def in_memory(tmp_path):
    store = MemoryKeys()

    def stop() -> None:
        store.away = True

    yield store, stop


@asynccontextmanager
async def on_redis(tmp_path):
    async with shared_redis(tmp_path) as (shared, server):
        yield shared.keys, server.stop


@pytest.fixture(params=[in_memory, on_redis], ids=["memory", "redis"])
def opened(request, tmp_path):
    return request.param(tmp_path)


async def test_a_record_is_read_as_it_was_made(opened):
    async with opened as (store, _):
        _, record = draw(WANTED, by="admin-file")
        assert await store.read(record.id) is None
        await store.create(record)
        assert await store.read(record.id) == record
        assert await store.every() == [record]


async def test_an_id_is_given_once(opened):
    async with opened as (store, _):
        _, record = draw(WANTED, by="admin-file")
        await store.create(record)
        with pytest.raises(Conflict):
            await store.create(record.model_copy(update={"name": "another"}))
        await store.revoke(record.id)
        with pytest.raises(Conflict):
            await store.create(record.model_copy(update={"name": "another"}))


async def test_a_revoked_key_is_listed_and_no_longer_found(opened):
    async with opened as (store, _):
        _, record = draw(WANTED, by="admin-file")
        await store.create(record)
        revoked = await store.revoke(record.id)
        assert revoked is not None and revoked.revoked_at is not None
        assert await store.read(record.id) is None
        assert await store.every() == [revoked] == [await store.revoke(record.id)]
        assert await store.revoke("key-0000000000000000") is None


async def test_a_change_changes_what_it_names_and_nothing_else(opened):
    async with opened as (store, _):
        _, record = draw(WANTED, by="admin-file")
        await store.create(record)
        assert await store.change("key-0000000000000000", KeyChange(name="x")) is None
        renamed = await store.change(record.id, KeyChange(name="another team"))
        assert renamed == record.model_copy(update={"name": "another team"}) == await store.read(record.id)
        more = KeyChange.model_validate({"quotas": {"tokens_per_minute": 9, "requests_per_minute": None}})
        changed = await store.change(record.id, more)
        assert changed is not None and changed.quotas == Quotas(tokens_per_minute=9)
        assert await store.read(record.id) == changed
        await store.revoke(record.id)
        assert await store.change(record.id, KeyChange(name="too late")) is None


async def test_of_changes_at_once_none_is_lost(opened):
    async with opened as (store, _):
        _, record = draw(WANTED, by="admin-file")
        await store.create(record)
        quotas = ["requests_per_minute", "tokens_per_minute", "sequences_in_flight"]
        changes = [KeyChange.model_validate({"quotas": {name: 7}}) for name in quotas] + [KeyChange(name="both")]
        await asyncio.gather(*(store.change(record.id, change) for change in changes))
        found = await store.read(record.id)
        assert found.name == "both" and set(found.quotas.model_dump().values()) == {7}


async def test_a_store_that_is_away_says_so(opened):
    async with opened as (store, stop):
        _, record = draw(WANTED, by="admin-file")
        stop()
        for work in (
            store.read(record.id),
            store.create(record),
            store.every(),
            store.revoke(record.id),
            store.change(record.id, KeyChange(name="x")),
        ):
            with pytest.raises(Unavailable) as away:
                await work
            assert away.value.code is ErrorCode.KEYS_UNAVAILABLE and away.value.retry_after
