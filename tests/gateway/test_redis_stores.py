"""The shared stores on a real server of the Redis protocol: exact counts, owned claims, and every way to lose it."""

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.adapters import redis_limit, redis_link, redis_store
from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_keys import RedisKeyStore
from acemath_gateway.adapters.redis_link import RedisLink, StoreAway
from acemath_gateway.adapters.redis_quota import RedisQuotaStore
from acemath_gateway.adapters.redis_store import RedisIdempotencyStore
from acemath_gateway.jobqueue.store import Rules
from acemath_gateway.ports import LimitOutcome, Stored
from acemath_gateway.shared import SharedStores, running
from doubles.gateway_app import eventually
from doubles.valkey import ValkeyServer

LONG = 30.0


@pytest.fixture
def valkey(tmp_path):
    with ValkeyServer(tmp_path) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch):
    """Asserting again takes a fifth of a second instead of five."""
    for module in (redis_limit, redis_store, redis_link):
        monkeypatch.setattr(module, "ASSERT_SECONDS", 0.2, raising=False)
        monkeypatch.setattr(module, "LIFETIME_SECONDS", 0.6, raising=False)


@asynccontextmanager
async def stores(
    url: str, *, shared_max: int = 8, local_max: int = 4, keep: bool = True, instance: str = "a", timeout: float = 3.0
):
    """One gateway's stores; without `keep` it is one that died: nothing is asserted again."""
    link = RedisLink(url, timeout_seconds=timeout, on_change=lambda up: None)
    opened = SharedStores(
        redis_limit.RedisSequenceLimit(link, shared_max=shared_max, local_max=local_max),
        RedisIdempotencyStore(link, ttl_seconds=60),
        redis_store.RedisLeaseStore(link, instance=instance),
        RedisKeyStore(link),
        RedisQuotaStore(link),
        RedisJobStore(link, Rules(10, 10, 1000, 60, 60), instance=instance),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        await link.connect()
        if keep:
            for work in (link.watch(), opened.limit.keep(), opened.idempotency.keep()):
                await stack.enter_async_context(running("keep", work))
        yield opened


async def free_places(limit, most: int = 64) -> int:
    """How many single sequences still fit, by asking for them."""
    async with AsyncExitStack() as stack:
        for taken in range(most):
            try:
                await stack.enter_async_context(limit.hold("probe", 1, Deadline.after(LONG)))
            except Unavailable:
                return taken
    return most


# ------------------------------------------------------------------------------------------------------------- limit


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
        assert await free_places(a.limit) == 8


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
        assert 6 <= most <= 8 and granted > 20
        await asyncio.sleep(0.1)
        assert await free_places(a.limit) == 8


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
        await asyncio.sleep(0.1)
        assert await free_places(b.limit) == 8


async def test_a_killed_gateways_places_come_back_by_themselves(valkey, hasty):
    async with stores(valkey.url) as alive, stores(valkey.url, keep=False) as killed:
        hold = killed.limit.hold("1", 8, Deadline.after(LONG))
        await hold.__aenter__()
        assert await free_places(alive.limit) == 0
        await asyncio.sleep(0.8)
        assert await free_places(alive.limit) == 8
        await hold.__aexit__(None, None, None)


async def test_a_hold_that_is_kept_outlives_its_first_lifetime(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b, a.limit.hold("1", 8, Deadline.after(LONG)):
        await asyncio.sleep(1.2)
        assert await free_places(b.limit) == 0


async def test_a_dead_gateways_hold_ends_with_its_requests_deadline_when_that_is_sooner(valkey):
    async with (
        stores(valkey.url, keep=False) as dead,
        stores(valkey.url) as alive,
        dead.limit.hold("1", 8, Deadline.after(0.2)),
    ):
        assert await free_places(alive.limit) == 0
        await asyncio.sleep(1.3)
        assert await free_places(alive.limit) == 8


async def test_a_flushed_server_counts_right_again(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b, a.limit.hold("1", 8, Deadline.after(LONG)):
        valkey.flush()
        await asyncio.sleep(0.5)
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
            await asyncio.sleep(0.1)
            assert await free_places(a.limit) == 4


async def test_what_was_released_meanwhile_is_given_back_when_the_server_is_back(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        async with a.limit.hold("1", 8, Deadline.after(LONG)):
            valkey.stop()
        await eventually(lambda: not a.limit._link.up)
        valkey.start()  # its append-only file still holds the eight
        await eventually(lambda: a.limit._link.up)
        assert await free_places(b.limit) == 8


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


async def test_a_stalled_server_costs_one_time_out_and_no_more(valkey):
    async with stores(valkey.url, timeout=0.25) as a:
        valkey.stall()
        started = time.perf_counter()
        async with a.limit.hold("1", 1, Deadline.after(LONG)) as one, a.limit.hold("2", 1, Deadline.after(LONG)) as two:
            assert one is two is LimitOutcome.LOCAL
        assert time.perf_counter() - started < 2.0
        valkey.resume()
        await eventually(lambda: a.limit._link.up)
        async with a.limit.hold("3", 1, Deadline.after(LONG)) as third:
            assert third is LimitOutcome.SHARED


class SlowScript:
    """Stands for a script on a server that takes its time; counts how many run at once."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.running = self.most = 0

    async def __call__(self, keys, args) -> object:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return 1


async def test_a_burst_on_a_healthy_server_waits_its_turn(valkey):
    async with stores(valkey.url, shared_max=400) as a:
        link, slow = a.limit._link, SlowScript(0.02)
        link._script = lambda source: slow
        async with AsyncExitStack() as stack:
            outcomes = await asyncio.gather(
                *(stack.enter_async_context(a.limit.hold(str(i), 1, Deadline.after(LONG))) for i in range(300))
            )
        assert set(outcomes) == {LimitOutcome.SHARED} and link.up
        assert slow.most <= redis_link._MAX_CALLS < redis_link._MAX_CONNECTIONS


async def test_more_than_the_link_can_carry_is_busy_and_not_away(valkey, monkeypatch):
    monkeypatch.setattr(redis_link, "_BUSY_SECONDS", 0.1)
    async with stores(valkey.url) as a:
        a.limit._link._script = lambda source: SlowScript(1.0)
        calls = [asyncio.create_task(a.limit._link.run("s", [], [])) for _ in range(redis_link._MAX_CALLS)]
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable) as full:
            async with a.limit.hold("1", 1, Deadline.after(LONG)):
                pass
        assert full.value.code is ErrorCode.OVERLOADED and full.value.retry_after
        assert a.limit._link.up
        await asyncio.gather(*calls)


async def test_a_time_out_is_looked_into_and_a_broken_connection_is_a_loss(valkey):
    async with stores(valkey.url) as a:
        link, real = a.limit._link, a.limit._link._script
        for error, left_up in ((TimeoutError(), True), (TimeoutError(), True), (ConnectionResetError(), False)):
            link._script = lambda source, error=error: SlowScript(0.0, error)
            with pytest.raises(StoreAway):
                await link.run("s", [], [])
            assert link.up is left_up
            link._script = real
            await eventually(lambda: link._known.is_set() and link.up)
        async with a.limit.hold("1", 1, Deadline.after(LONG)) as outcome:
            assert outcome is LimitOutcome.SHARED


async def test_cancelled_calls_give_their_turns_back(valkey):
    async with stores(valkey.url) as a:
        link, real = a.limit._link, a.limit._link._script
        link._script = lambda source: SlowScript(60)
        calls = [asyncio.create_task(link.run("s", [], [])) for _ in range(3 * redis_link._MAX_CALLS)]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        link._script = real
        await eventually(lambda: link._turns._value == redis_link._MAX_CALLS)
        assert await free_places(a.limit) == 8


async def test_of_those_who_wait_for_a_key_one_asks_at_a_time(valkey, monkeypatch):
    async with stores(valkey.url) as a:
        await a.idempotency.begin("k", "f", Deadline.after(20))
        asked = 0
        begin = a.idempotency._begin

        async def counted(key, claim):
            nonlocal asked
            asked += 1
            return await begin(key, claim)

        monkeypatch.setattr(a.idempotency, "_begin", counted)
        waiting = [asyncio.create_task(a.idempotency.begin("k", "f", Deadline.after(20))) for _ in range(50)]
        await asyncio.sleep(1.0)
        assert asked <= 50 + 15  # each once, then one of them again and again
        await a.idempotency.finish("k", "f", Stored(200, b"{}"))
        assert await asyncio.gather(*waiting) == [Stored(200, b"{}")] * 50
        assert not a.idempotency._turns


# ------------------------------------------------------------------------------------------------------- idempotency


async def test_the_first_claims_and_the_next_gets_its_answer(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        assert await a.idempotency.begin("k", "f", Deadline.after(5)) is None
        waiting = asyncio.create_task(b.idempotency.begin("k", "f", Deadline.after(5)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await a.idempotency.finish("k", "f", Stored(200, b'{"answer": "\xe2\x88\x9e"}'))
        assert await waiting == Stored(200, b'{"answer": "\xe2\x88\x9e"}')


async def test_another_body_is_a_conflict_before_and_after_the_answer(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await a.idempotency.begin("k", "f", Deadline.after(5))
        for _ in range(2):
            with pytest.raises(Conflict) as conflict:
                await b.idempotency.begin("k", "g", Deadline.after(5))
            assert conflict.value.should_retry is False
            await a.idempotency.finish("k", "f", Stored(200, b"{}"))


async def test_an_abandoned_key_goes_to_the_one_who_waits(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await a.idempotency.begin("k", "f", Deadline.after(5))
        waiting = asyncio.create_task(b.idempotency.begin("k", "f", Deadline.after(5)))
        await asyncio.sleep(0.05)
        await a.idempotency.abandon("k", "f")
        assert await waiting is None


async def test_of_many_at_once_one_works(valkey):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        tasks = [asyncio.create_task((a, b)[i % 2].idempotency.begin("k", "f", Deadline.after(20))) for i in range(20)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.3)
        claimed = [i for i, task in enumerate(tasks) if task.done()]
        assert len(claimed) == 1
        await (a, b)[claimed[0] % 2].idempotency.finish("k", "f", Stored(200, b"{}"))
        answers = await asyncio.gather(*tasks)
        assert sum(answer is None for answer in answers) == 1


async def test_a_claim_is_kept_while_its_owner_works_and_lost_when_it_dies(valkey, hasty):
    async with stores(valkey.url) as b:
        async with stores(valkey.url) as a:
            await a.idempotency.begin("k", "f", Deadline.after(5))
            with pytest.raises(DeadlineExceeded):
                await b.idempotency.begin("k", "f", Deadline.after(1.0))
        assert await b.idempotency.begin("k", "f", Deadline.after(2)) is None  # a is gone without a word
        async with stores(valkey.url, keep=False) as late:
            late.idempotency._claims["k"] = redis_store._Claim("late", "f")
            await late.idempotency.finish("k", "f", Stored(200, b"from the late one"))
        with pytest.raises(DeadlineExceeded):  # whoever lost its claim overwrites nothing
            await b.idempotency.begin("k", "f", Deadline.after(0.2))


async def test_a_claim_survives_a_flush(valkey, hasty):
    async with stores(valkey.url) as a, stores(valkey.url) as b:
        await a.idempotency.begin("k", "f", Deadline.after(5))
        valkey.flush()
        await asyncio.sleep(0.4)
        with pytest.raises(DeadlineExceeded):
            await b.idempotency.begin("k", "f", Deadline.after(0.2))


async def test_without_the_server_no_promise_is_made(valkey):
    async with stores(valkey.url) as a:
        await a.idempotency.begin("mine", "f", Deadline.after(5))
        valkey.stop()
        with pytest.raises(Unavailable) as away:
            await a.idempotency.begin("k", "f", Deadline.after(5))
        assert away.value.code is ErrorCode.IDEMPOTENCY_UNAVAILABLE
        await a.idempotency.finish("mine", "f", Stored(200, b"{}"))  # the answer still goes to its caller
        await a.idempotency.abandon("mine", "f")


async def test_answers_survive_a_restart_that_nobody_noticed(valkey):
    async with stores(valkey.url) as a:
        await a.idempotency.begin("done", "f", Deadline.after(5))
        await a.idempotency.finish("done", "f", Stored(200, b"kept"))
        await asyncio.sleep(1.1)  # the append-only file is synced every second
        valkey.stop()
        valkey.start()
        assert await a.idempotency.begin("done", "f", Deadline.after(5)) == Stored(200, b"kept")


# ------------------------------------------------------------------------------------------------------------ leases


async def test_a_lease_record_is_there_while_asserted_and_gone_after(valkey, hasty):
    async with stores(valkey.url, instance="g-1") as a:
        await a.leases.assert_leases(3, "r-1", {"r-1": 2})
        assert b'{"r-1": 2}' in valkey.ask("HGETALL acemath:leases:g-1")
        assert b"g-1" in valkey.ask("ZRANGE acemath:gateways 0 -1")
        await asyncio.sleep(0.8)
        assert valkey.ask("EXISTS acemath:leases:g-1") == b":0\r\n"  # unknown, and still on the list
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


async def test_every_key_stands_under_our_prefix(valkey):
    async with stores(valkey.url) as a, a.limit.hold("1", 2, Deadline.after(LONG)):
        await a.idempotency.begin("k", "f", Deadline.after(5))
        await a.leases.assert_leases(1, None, {})
        keys = [line for line in valkey.ask("KEYS *").split(b"\r\n") if line and line[:1] not in b"*$"]
        assert len(keys) == 4 and all(key.startswith(b"acemath:") for key in keys)


async def test_the_link_is_down_until_it_was_up():
    link = RedisLink("redis://127.0.0.1:1/0", timeout_seconds=0.1, on_change=lambda up: None)
    assert await link.connect() is False and not link.up
    with pytest.raises(StoreAway):
        await link.run("return 1", [], [])
    await link.close()
