"""Engines that hang, stall, are full or die: what the agent makes of them, on real processes (doubles of vLLM)."""

from __future__ import annotations

import os
import signal

import httpx
import pytest
from policy.conftest import KEY, Agents, Releases
from policy.test_reconcile import Control, Eventually, active, pids
from policy.test_shim import alive, chain_of


async def test_an_engine_that_hangs_on_generation_is_never_active(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    control({"hang": True})
    releases.promote(releases.publish("a"))
    agent = agents.start(warm_timeout_seconds=0.3)
    await eventually(lambda: "ReadTimeout" in agent.reconciler.readiness().reason, what=agent.reconciler.slots)
    assert agent.states()["1"] != "active"


async def test_an_engine_that_stops_making_tokens_is_unready_and_then_restarted(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start(progress_seconds=2.5, stall_restart_seconds=5.0, probe_timeout_seconds=1.0)
    await active(agent, eventually, 1)
    control({"hang": True})
    await eventually(lambda: not agent.reconciler.readiness().ready)
    assert "no token for" in agent.reconciler.readiness().reason
    await eventually(lambda: agent.states()["1"] in ("staging", "warming"))
    control({})
    await active(agent, eventually, 1)
    assert agent.metrics.get_sample_value("acemath_policy_vllm_restarts_total") == 1


async def test_an_engine_without_a_pulse_is_not_offered(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start(progress_seconds=2.5, stall_restart_seconds=60.0, probe_timeout_seconds=1.0)
    await active(agent, eventually, 1)
    assert agent.endpoint(1)
    control({"hang": True})
    await eventually(lambda: not agent.reconciler.readiness().ready)
    assert agent.states()["1"] == "active" and agent.endpoint(1) == "", "a restart is far away"
    assert "no token for" in agent.reason(1)


async def test_a_saturated_engine_is_ready(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start(progress_seconds=4.0, probe_timeout_seconds=4.0)
    await active(agent, eventually, 1)
    control({"token_seconds": 0.05, "script": ["x" * 120]})
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    body = {"prompt": [1], "max_tokens": 200, "seed": 0, "stream": True, "n": 16}
    verdicts: list[bool] = []
    async with (
        httpx.AsyncClient(base_url=agent.endpoint(1), headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        async for _ in stream.aiter_lines():
            verdicts.append(agent.reconciler.readiness().ready)
    assert len(verdicts) > 1000
    assert all(verdicts)


@pytest.mark.parametrize("victim", ["shim", "api", "engine", "worker"])
async def test_whatever_dies_is_started_again(
    agents: Agents, releases: Releases, eventually: Eventually, victim: str
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    await eventually(lambda: len(chain_of(pids(agent)[0])) == 5)
    chain = chain_of(pids(agent)[0])
    os.kill(chain[{"shim": 0, "api": 2, "engine": 3, "worker": 4}[victim]], signal.SIGKILL)
    await eventually(lambda: agent.states()["1"] != "active", what=agent.states)
    await active(agent, eventually, 1)
    assert not any(map(alive, chain))


async def test_a_server_that_says_its_engine_is_dead_is_replaced(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start(start_timeout_seconds=60)
    await active(agent, eventually, 1)
    chain = chain_of(pids(agent)[0])
    control({"engine_dead": True})
    await eventually(lambda: not any(map(alive, chain)))
    await eventually(lambda: agent.states()["1"] == "staging" and "its engine is dead" in agent.reason(1))
    control({})
    await active(agent, eventually, 1)
