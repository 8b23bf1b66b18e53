"""The connection to a real server of the Redis protocol: bursts, time-outs and losses, as the limit meets them."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from gateway.opened_stores import LONG, HeldScript, come_free, stores

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.adapters import redis_link
from acemath_gateway.adapters.redis_link import RedisLink, StoreAway
from acemath_gateway.ports import LimitOutcome
from doubles.gateway_app import eventually


async def test_a_stalled_server_costs_one_time_out_and_no_more(valkey, monkeypatch):
    async with stores(valkey.url, timeout=2.0) as a:
        link, asked = a.limit._link, []
        answer = link._answer
        monkeypatch.setattr(link, "_answer", lambda *args, **other: asked.append(args) or answer(*args, **other))
        valkey.stall()
        async with a.limit.hold("1", 1, Deadline.after(LONG)) as one, a.limit.hold("2", 1, Deadline.after(LONG)) as two:
            assert one is two is LimitOutcome.LOCAL and len(asked) == 1
        valkey.resume()
        await eventually(lambda: link.up and link._known.is_set())
        async with a.limit.hold("3", 1, Deadline.after(LONG)) as third:
            assert third is LimitOutcome.SHARED


async def test_a_burst_on_a_healthy_server_waits_its_turn(valkey, monkeypatch):
    monkeypatch.setattr(redis_link, "_BUSY_SECONDS", 60.0)
    async with stores(valkey.url, shared_max=400) as a, AsyncExitStack() as stack:
        link, script = a.limit._link, HeldScript()
        link._script = lambda source: script
        holds = (a.limit.hold(str(i), 1, Deadline.after(LONG)) for i in range(300))
        burst = asyncio.gather(*(stack.enter_async_context(hold) for hold in holds))
        await eventually(lambda: script.running == redis_link._MAX_CALLS)
        script.let_go.set()
        assert set(await burst) == {LimitOutcome.SHARED} and link.up
        assert script.most <= redis_link._MAX_CALLS < redis_link._MAX_CONNECTIONS


async def test_more_than_the_link_can_carry_is_busy_and_not_away(valkey, monkeypatch):
    monkeypatch.setattr(redis_link, "_BUSY_SECONDS", 0.1)
    async with stores(valkey.url) as a:
        link, script = a.limit._link, HeldScript()
        link._script = lambda source: script
        calls = [asyncio.create_task(link.run("s", [], [])) for _ in range(redis_link._MAX_CALLS)]
        await eventually(lambda: script.running == redis_link._MAX_CALLS)
        with pytest.raises(Unavailable) as full:
            async with a.limit.hold("1", 1, Deadline.after(LONG)):
                pass
        assert full.value.code is ErrorCode.OVERLOADED and full.value.retry_after
        assert link.up
        script.let_go.set()
        await asyncio.gather(*calls)


async def test_a_time_out_is_looked_into_and_a_broken_connection_is_a_loss(valkey):
    async with stores(valkey.url) as a:
        link, real = a.limit._link, a.limit._link._script
        for error, left_up in ((TimeoutError(), True), (TimeoutError(), True), (ConnectionResetError(), False)):
            script = HeldScript(error)
            script.let_go.set()
            link._script = lambda source, script=script: script
            with pytest.raises(StoreAway):
                await link.run("s", [], [])
            assert link.up is left_up
            link._script = real
            await eventually(lambda: link._known.is_set() and link.up)
        async with a.limit.hold("1", 1, Deadline.after(LONG)) as outcome:
            assert outcome is LimitOutcome.SHARED


async def test_cancelled_calls_give_their_turns_back(valkey):
    async with stores(valkey.url) as a:
        link, real, script = a.limit._link, a.limit._link._script, HeldScript()
        link._script = lambda source: script
        calls = [asyncio.create_task(link.run("s", [], [])) for _ in range(3 * redis_link._MAX_CALLS)]
        await eventually(lambda: script.running == redis_link._MAX_CALLS)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        link._script = real
        await eventually(lambda: link._turns._value == redis_link._MAX_CALLS)
        await come_free(a.limit, 8)


async def test_the_link_is_down_until_it_was_up():
    link = RedisLink("redis://127.0.0.1:1/0", timeout_seconds=0.1, on_change=lambda up: None)
    assert await link.connect() is False and not link.up
    with pytest.raises(StoreAway):
        await link.run("return 1", [], [])
    await link.close()


async def test_every_key_stands_under_our_prefix(valkey):
    async with stores(valkey.url) as a, a.limit.hold("1", 2, Deadline.after(LONG)):
        await a.idempotency.begin("k", "f", Deadline.after(LONG))
        await a.leases.assert_leases(1, None, {})
        keys = [line for line in valkey.ask("KEYS *").split(b"\r\n") if line and line[:1] not in b"*$"]
        assert len(keys) == 4 and all(key.startswith(b"acemath:") for key in keys)
