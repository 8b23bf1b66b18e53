"""Jobs when a part goes away: Redis in mid-job, a worker in mid-line, a gateway that is told to stop."""

import asyncio
from collections import Counter

from gateway.stored_jobs import grow_idle

from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.jobqueue.store import Rules
from doubles.gateway_app import SCRIPT, eventually
from doubles.job_client import PATIENT, clients, ended, file, gateway, rows_of, submitted
from doubles.ports import ScriptedPolicy


def held() -> ScriptedPolicy:
    return ScriptedPolicy(SCRIPT, gate=asyncio.Event())


async def silent_worker(url: str) -> tuple[RedisLink, RedisJobStore]:
    """What Redis sees of a gateway that is killed: it took lines, and says nothing any more."""
    link = RedisLink(url, timeout_seconds=3, on_change=lambda up: None)
    await link.connect()
    return link, RedisJobStore(link, Rules(10, 100, 10**6, 60, 60, 60), instance="killed")


async def test_two_gateways_share_a_job(valkey):
    policies = held(), held()
    gateways = [gateway(valkey, f"g{i}", policy=one, settings=PATIENT) for i, one in enumerate(policies)]
    async with clients(*gateways) as (a, b):
        submitted_job = await submitted(a, file(16))
        await eventually(lambda: all(one.calls for one in policies))
        for one in policies:
            one.gate.set()
        job = await ended(b, submitted_job)
        assert job["state"] == "completed" and job["counts"]["succeeded"] == 16
        assert sum(len(one.calls) for one in policies) == 16


async def test_redis_killed_in_the_middle_of_a_job_costs_no_result_and_no_second_run(valkey):
    valkey.sync_always()
    policies = held(), held()
    gateways = [gateway(valkey, f"g{i}", policy=one, settings=PATIENT) for i, one in enumerate(policies)]
    async with clients(*gateways) as (a, b):
        job = await submitted(a, file(12))
        await eventually(lambda: sum(len(one.calls) for one in policies) >= 6)
        grow_idle(valkey, job)
        valkey.stop()
        for http in (a, b):
            away = await http.get(f"/v1/jobs/{job}")
            assert away.status_code == 503 and away.json()["error"]["code"] == "jobs_unavailable"
        for one in policies:
            one.gate.set()
        await eventually(lambda: not any(one.running for one in policies))  # the lines go on, and wait with results
        valkey.start()
        found = await ended(b, job)
        assert found["state"] == "completed" and found["counts"]["succeeded"] == 12
        assert Counter(row["runs"] for row in await rows_of(a, job)) == {1: 12}
        assert sum(len(one.calls) for one in policies) == 12


async def test_a_worker_killed_in_the_middle_of_a_line_gives_it_to_another(valkey):
    link, killed = await silent_worker(valkey.url)
    one = gateway(valkey, serving=False)
    async with clients(one) as http:
        job = await submitted(http, file(3))
        assert [(await killed.take()).line for _ in range(2)] == [1, 2]
        grow_idle(valkey, job)
        one.serving = True
        assert (await ended(http, job))["counts"]["succeeded"] == 3
        assert [row["runs"] for row in await rows_of(http, job)] == [2, 2, 1]
    await link.close()


async def test_a_line_that_takes_its_worker_with_it_is_given_up_after_three_times(valkey):
    link, killed = await silent_worker(valkey.url)
    killed._others_rest_until = 0.0
    one = gateway(valkey, serving=False)
    async with clients(one) as http:
        job = await submitted(http, file(2))
        for _ in range(3):
            line = await killed.take()
            assert line.line == 1
            grow_idle(valkey, job)
        one.serving = True
        found = await ended(http, job)
        assert (found["state"], found["counts"]["failed"]) == ("completed", 1)
        lost, other = await rows_of(http, job)
        assert (lost["runs"], lost["error"]["code"]) == (3, "worker_lost")
        assert (other["runs"], other["state"], len(one.policy.calls)) == (1, "succeeded", 1)
    await link.close()


async def test_a_gateway_that_is_told_to_stop_hands_its_lines_over_at_once(valkey):
    stopping, staying = held(), ScriptedPolicy(SCRIPT)
    async with clients(gateway(valkey, "stays", policy=staying, serving=False, settings=PATIENT)) as http:
        other = gateway(valkey, "stops", policy=stopping, settings=PATIENT)
        async with clients(other) as leaving:
            job = await submitted(leaving, file(3))
            await eventually(lambda: len(stopping.calls) == 3)
        assert stopping.running == 0 and other.limit.held == 0
        counts = (await http.get(f"/v1/jobs/{job}")).json()["counts"]
        assert (counts["queued"], counts["running"]) == (3, 0)
        link, worker = await silent_worker(valkey.url)
        worker._others_rest_until = 0.0
        again = [await worker.take() for _ in range(3)]
        assert sorted((line.line, line.runs) for line in again) == [(1, 1), (2, 1), (3, 1)]
        await link.close()
