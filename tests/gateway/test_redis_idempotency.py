"""Answers under idempotency keys, and leases, on a real server of the Redis protocol: owned claims, nothing twice."""

import asyncio
from collections import Counter

import pytest
from gateway.opened_stores import LONG, stores

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.adapters import redis_store
from acemath_gateway.ports import Stored
from doubles.gateway_app import eventually

KEY = "acemath:idempotency:k"


def soon() -> Deadline:
    """Of somebody who is to give up."""
    return Deadline.after(0.2)


@pytest.fixture
def hasty(monkeypatch):
    """Asserting again takes a twentieth of a second instead of five."""
    monkeypatch.setattr(redis_store, "ASSERT_SECONDS", 0.05)


def asks(store, monkeypatch) -> Counter[str]:
    """How often each who wants a key of this store asks for it, from now on."""
    asked: Counter[str] = Counter()
    begin = store._begin

    async def counted(key, claim):
        reply = await begin(key, claim)
        asked[claim.owner] += 1
        return reply

    monkeypatch.setattr(store, "_begin", counted)
    return asked


def claiming(store, deadline: Deadline | None = None) -> asyncio.Task:
    return asyncio.create_task(store.begin("k", "f", deadline or Deadline.after(LONG)))


async def test_of_those_who_wait_for_a_key_one_asks_at_a_time(valkey, monkeypatch):
    async with stores(valkey.url) as a:
        await claiming(a.idempotency)
        asked = asks(a.idempotency, monkeypatch)
        waiting = [claiming(a.idempotency) for _ in range(50)]
        await eventually(lambda: len(asked) == 50 and asked.total() > 53)
        assert sum(times > 1 for times in asked.values()) == 1, "each once, then one of them again and again"
        await a.idempotency.finish("k", "f", Stored(200, b"{}"))
        assert await asyncio.gather(*waiting) == [Stored(200, b"{}")] * 50
        assert not a.idempotency._turns


async def test_the_first_claims_and_the_next_gets_its_answer(valkey, monkeypatch):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        assert await claiming(a.idempotency) is None
        asked = asks(b.idempotency, monkeypatch)
        waiting = claiming(b.idempotency)
        await eventually(lambda: asked.total() > 2)
        assert not waiting.done()
        await a.idempotency.finish("k", "f", Stored(200, b'{"answer": "\xe2\x88\x9e"}'))
        assert await waiting == Stored(200, b'{"answer": "\xe2\x88\x9e"}')


async def test_another_body_is_a_conflict_before_and_after_the_answer(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await claiming(a.idempotency)
        for _ in range(2):
            with pytest.raises(Conflict) as conflict:
                await b.idempotency.begin("k", "g", Deadline.after(LONG))
            assert conflict.value.should_retry is False
            await a.idempotency.finish("k", "f", Stored(200, b"{}"))


async def test_an_abandoned_key_goes_to_the_one_who_waits(valkey, monkeypatch):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await claiming(a.idempotency)
        asked = asks(b.idempotency, monkeypatch)
        waiting = claiming(b.idempotency)
        await eventually(lambda: asked.total() > 0)
        await a.idempotency.abandon("k", "f")
        assert await waiting is None


async def test_of_many_at_once_one_works(valkey, monkeypatch):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        asked = [asks(one.idempotency, monkeypatch) for one in (a, b)]
        tasks = [claiming((a, b)[i % 2].idempotency) for i in range(20)]
        await eventually(lambda: sum(map(len, asked)) == 20 and any(task.done() for task in tasks))
        (claimed,) = [i for i, task in enumerate(tasks) if task.done()]
        await (a, b)[claimed % 2].idempotency.finish("k", "f", Stored(200, b"{}"))
        answers = await asyncio.gather(*tasks)
        assert sum(answer is None for answer in answers) == 1


async def test_a_claim_is_kept_while_its_owner_works_and_lost_when_it_dies(valkey, hasty):
    async with stores(valkey.url) as b:
        async with stores(valkey.url) as a:
            await claiming(a.idempotency)
            valkey.ask(f"PEXPIRE {KEY} 500")  # nearly over
            await eventually(lambda: valkey.number(f"PTTL {KEY}") > 1000)
            with pytest.raises(DeadlineExceeded):
                await claiming(b.idempotency, soon())
        assert 0 < valkey.number(f"PTTL {KEY}") <= 1000 * redis_store.LIFETIME_SECONDS  # a is gone without a word
        valkey.ask(f"PEXPIRE {KEY} 1")
        assert await claiming(b.idempotency) is None
        async with stores(valkey.url, keep=False) as late:
            late.idempotency._claims["k"] = redis_store._Claim("late", "f")
            await late.idempotency.finish("k", "f", Stored(200, b"from the late one"))
        with pytest.raises(DeadlineExceeded):  # whoever lost its claim overwrites nothing
            await claiming(b.idempotency, soon())


async def test_a_claim_survives_a_flush(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await claiming(a.idempotency)
        valkey.flush()
        await eventually(lambda: valkey.number(f"EXISTS {KEY}"))
        with pytest.raises(DeadlineExceeded):
            await claiming(b.idempotency, soon())


async def test_without_the_server_no_promise_is_made(valkey):
    async with stores(valkey.url) as a:
        await a.idempotency.begin("mine", "f", Deadline.after(LONG))
        valkey.stop()
        with pytest.raises(Unavailable) as away:
            await claiming(a.idempotency)
        assert away.value.code is ErrorCode.IDEMPOTENCY_UNAVAILABLE
        await a.idempotency.finish("mine", "f", Stored(200, b"{}"))  # the answer still goes to its caller
        await a.idempotency.abandon("mine", "f")


async def test_answers_survive_a_restart_that_nobody_noticed(valkey):
    valkey.sync_always()
    async with stores(valkey.url) as a:
        await claiming(a.idempotency)
        await a.idempotency.finish("k", "f", Stored(200, b"kept"))
        valkey.stop()
        valkey.start()
        assert await claiming(a.idempotency) == Stored(200, b"kept")


# ------------------------------------------------------------------------------------------------------------ leases


async def test_a_lease_record_is_there_while_asserted_and_gone_after(valkey):
    async with stores(valkey.url, instance="g-1") as a:
        await a.leases.assert_leases(3, "r-1", {"r-1": 2})
        assert b'{"r-1": 2}' in valkey.ask("HGETALL acemath:leases:g-1")
        assert b"g-1" in valkey.ask("ZRANGE acemath:gateways 0 -1")
        assert 0 < valkey.number("PTTL acemath:leases:g-1") <= 1000 * redis_store.LIFETIME_SECONDS
        valkey.ask("PEXPIRE acemath:leases:g-1 1")
        await eventually(lambda: not valkey.number("EXISTS acemath:leases:g-1"))  # unknown, and still on the list
        assert b"g-1" in valkey.ask("ZRANGE acemath:gateways 0 -1")
        await a.leases.withdraw()
        assert b"g-1" not in valkey.ask("ZRANGE acemath:gateways 0 -1")


async def test_leases_never_raise_and_come_back_with_the_server(valkey):
    async with stores(valkey.url, instance="g-1") as a:
        valkey.stop()
        await a.leases.assert_leases(3, "r-1", {"r-1": 2})
        valkey.start()
        await eventually(lambda: a.limit._link.up)
        assert b'{"r-1": 2}' in valkey.ask("HGETALL acemath:leases:g-1")
        valkey.stop()
        await a.leases.withdraw()
