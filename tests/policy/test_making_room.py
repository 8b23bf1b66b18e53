"""The resource-preserving swap on real processes: the old server ends before the new one is started."""

from __future__ import annotations

import pytest
from policy.conftest import Agent, Agents, Releases
from policy.test_reconcile import Eventually, active, pids

from acemath_registry.following import SwapStrategy

pytestmark = pytest.mark.parametrize("strategy", [SwapStrategy.RESOURCE_PRESERVING])


async def test_the_old_server_makes_room_once_no_job_holds_it(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    async with releases.gateway_that(generation=1, release=first, leases={first: 1}) as gateway:
        releases.promote(releases.publish("b"))
        await eventually(lambda: gated(agent), what=agent.reconciler.slots)
        assert agent.states() == {"1": "draining", "2": "verifying"} and agent.endpoint(1)
        assert agent.reason(1).startswith("makes room for") and agent.reconciler.readiness().ready
        await eventually(lambda: "holds leases" in str(agent.reconciler.readiness().details["waiting"]))
        gateway["leases"] = {}
        most = 0

        def arrived() -> bool:
            nonlocal most
            most = max(most, len(pids(agent)))
            return agent.states().get("2") == "active"

        await eventually(arrived, what=agent.reconciler.slots)
    assert most == 1 and agent.states() == {"1": "retired", "2": "active"}


def gated(agent: Agent) -> bool:
    return any(slot.gated for slot in agent.reconciler.slots())


async def test_a_rollback_opens_the_gate(agents: Agents, releases: Releases, eventually: Eventually) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    before = pids(agent)
    async with releases.gateway_that(generation=1, release=first, leases={first: 1}):
        releases.promote(releases.publish("b"))
        await eventually(lambda: gated(agent), what=agent.reconciler.slots)
        releases.registry.rollback("default", by="test")
        await eventually(lambda: agent.states() == {"1": "active", "2": "retired"}, what=agent.states)
        assert not gated(agent) and pids(agent) == before


async def test_a_version_in_use_for_too_long_stays(agents: Agents, releases: Releases, eventually: Eventually) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start(gate_timeout_seconds=0.2)
    await active(agent, eventually, 1)
    async with releases.gateway_that(generation=1, release=first, leases={first: 1}) as gateway:
        releases.promote(releases.publish("b"))
        await eventually(lambda: agent.states().get("2") == "rejected", what=agent.states)
        assert "did not make room within 0.2 s: gateway gw: it holds leases" in agent.reason(2)
        await active(agent, eventually, 1)
        assert not gated(agent) and len(pids(agent)) == 1
        gateway["leases"] = {}


async def test_a_restarted_agent_brings_back_the_old_one_first(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    first = releases.promote(releases.publish("a"))
    releases.promote(releases.publish("b"))
    async with releases.gateway_that(generation=1, release=first, leases={first: 1}) as gateway:
        agent = agents.start()
        await eventually(lambda: gated(agent), what=agent.reconciler.slots)
        assert agent.states() == {"1": "draining", "2": "verifying"}
        gateway["leases"] = {}
        await active(agent, eventually, 2)
    assert agent.states() == {"1": "retired", "2": "active"} and len(pids(agent)) == 1
