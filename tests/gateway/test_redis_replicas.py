"""Two gateway replicas on one real server of the Redis protocol: `docs/failure-table.md`, the rows about Redis."""

import asyncio
from contextlib import asynccontextmanager

import httpx

from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, eventually_true, served
from doubles.servers import client_of
from doubles.valkey import ValkeyServer

SOLVE = {"problem": PROBLEM, "n": 4, "seed": 0}
SETTINGS = {
    "max_sequences_in_flight": 8,
    "local_max_sequences": 4,
    "max_queued_requests": 0,
    "redis_timeout_seconds": 5.0,
}


class Replica:
    """One gateway: its doubles and a client of it."""

    def __init__(self, gateway: GatewayOnDoubles, http: httpx.AsyncClient) -> None:
        self.gateway, self.http = gateway, http

    async def solve(self, **headers: str) -> httpx.Response:
        return await self.http.post("/v1/solve", json=SOLVE, headers=headers)

    def solving(self, **headers: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.solve(**headers))

    @property
    def running(self) -> int:
        return self.gateway.policy.running

    def let_go(self) -> None:
        """Let the candidates go on that `held` stopped."""
        assert self.gateway.policy.gate
        self.gateway.policy.gate.set()

    async def redis_up(self) -> bool:
        return "acemath_gateway_redis_up 1.0" in (await self.http.get("/metrics")).text

    async def knows_redis(self, up: bool) -> None:
        async def known() -> bool:
            return await self.redis_up() == up

        await eventually_true(known)


@asynccontextmanager
async def replicas(valkey: ValkeyServer, *, held: bool = False, **settings: float):
    gateways = [GatewayOnDoubles(SETTINGS | {"instance": name} | settings, redis_url=valkey.url) for name in ("a", "b")]
    for gateway in gateways:
        gateway.policy.gate = asyncio.Event() if held else None
    async with (
        served(gateways[0].app()) as first,
        served(gateways[1].app()) as second,
        client_of(first) as a,
        client_of(second) as b,
    ):
        yield Replica(gateways[0], a), Replica(gateways[1], b)


def code(reply: httpx.Response) -> str:
    return reply.json()["error"]["code"]


async def test_redis_there_the_limit_is_exact_over_both(valkey):
    async with replicas(valkey, held=True) as (a, b):
        tasks = [a.solving(), b.solving()]
        await eventually(lambda: a.running + b.running == 8)
        for refused in (await a.solve(), await b.solve()):
            assert refused.status_code == 503 and code(refused) == "overloaded" and refused.headers["retry-after"]
        a.let_go(), b.let_go()
        assert [(await task).status_code for task in tasks] == [200, 200]

        async def let_in() -> bool:
            return (await b.solve()).status_code == 200

        await eventually_true(let_in)  # places are given back behind the answer


async def test_redis_there_one_key_is_worked_on_once_whichever_replica_is_asked(valkey):
    async with replicas(valkey, held=True) as (a, b):
        tasks = [replica.solving(**{"idempotency-key": "k"}) for replica in (a, b)]
        await eventually(lambda: a.running + b.running == 4)
        a.let_go(), b.let_go()
        replies = [await task for task in tasks]
        again = await b.solve(**{"idempotency-key": "k"})
        conflict = await a.http.post("/v1/solve", json=SOLVE | {"n": 2}, headers={"idempotency-key": "k"})
    assert [reply.status_code for reply in (*replies, again)] == [200] * 3
    assert len({reply.content for reply in (*replies, again)}) == 1
    assert len(a.gateway.policy.calls) + len(b.gateway.policy.calls) == 1
    assert again.headers["idempotent-replayed"] == "true"
    assert conflict.status_code == 409 and conflict.headers["x-should-retry"] == "false"


async def test_redis_down_each_replica_goes_by_its_own_limit_and_keys_are_refused(valkey):
    async with replicas(valkey, held=True) as (a, b):
        valkey.stop()
        tasks = [a.solving(), b.solving()]
        await eventually(lambda: a.running == 4 and b.running == 4)
        for replica in (a, b):
            full = await replica.solve()
            assert full.status_code == 503 and code(full) == "overloaded"
            refused = await replica.solve(**{"idempotency-key": "k"})
            assert refused.status_code == 503 and code(refused) == "idempotency_unavailable"
            assert refused.headers["retry-after"]
            assert (await replica.http.get("/readyz")).status_code == 200
            assert not await replica.redis_up()
        a.let_go(), b.let_go()
        assert [(await task).status_code for task in tasks] == [200, 200]


async def test_redis_down_a_request_is_not_slower(valkey):
    async with replicas(valkey) as (a, _):
        valkey.stop()
        assert (await a.solve()).status_code == 200  # this one finds out
        waits = [(await a.solve()).json()["timings"]["queue_seconds"] for _ in range(5)]
        assert min(waits) < 0.1  # `test_redis_limit` has how little it costs; a time-out would be in all of them


async def test_redis_stalled_is_redis_down_after_one_time_out(valkey):
    async with replicas(valkey, redis_timeout_seconds=1.0) as (a, _):
        valkey.stall()
        waits = [(await a.solve()).json()["timings"]["queue_seconds"] for _ in range(4)]
        assert waits[0] >= 1.0 > min(waits[1:])  # a time-out would be in all of them
        assert code(await a.solve(**{"idempotency-key": "k"})) == "idempotency_unavailable"
        valkey.resume()
        await a.knows_redis(True)

        async def kept() -> bool:
            return (await a.solve(**{"idempotency-key": "k"})).status_code == 200

        await eventually_true(kept)


async def test_redis_back_everything_is_as_before(valkey):
    async with replicas(valkey, held=True) as (a, b):
        valkey.stop()
        tasks = [a.solving(), b.solving()]
        await eventually(lambda: a.running == 4 and b.running == 4)
        valkey.start()
        await a.knows_redis(True)
        await b.knows_redis(True)
        full = await a.solve()  # what was granted meanwhile is counted at once
        assert full.status_code == 503 and code(full) == "overloaded"
        a.let_go(), b.let_go()
        assert [(await task).status_code for task in tasks] == [200, 200]
        for replica in (a, b):
            assert (await replica.solve(**{"idempotency-key": "k"})).status_code == 200
        assert len(a.gateway.policy.calls) + len(b.gateway.policy.calls) == 3


async def test_redis_flushed_forgets_old_answers_and_nothing_else(valkey):
    async with replicas(valkey) as (a, b):
        await a.solve(**{"idempotency-key": "k"})
        valkey.flush()
        again = await b.solve(**{"idempotency-key": "k"})
    assert again.status_code == 200 and "idempotent-replayed" not in again.headers


async def test_redis_lost_while_a_key_is_worked_on_the_answer_is_still_given(valkey):
    async with replicas(valkey, held=True) as (a, _):
        task = a.solving(**{"idempotency-key": "k"})
        await eventually(lambda: a.running == 4)
        valkey.stop()
        a.let_go()
        assert (await task).status_code == 200


async def test_a_gateway_starts_without_redis_and_finds_it_later(valkey):
    valkey.stop()
    async with replicas(valkey) as (a, _):
        assert (await a.solve()).status_code == 200
        valkey.start()
        await a.knows_redis(True)
        assert (await a.solve(**{"idempotency-key": "k"})).status_code == 200
