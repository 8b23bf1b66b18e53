"""The agent runs a server for the version of a release that gets a share, beside the active one, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from policy.conftest import SETTLE, Agents, Releases
from policy.test_reconcile import active, pids

from acemath_registry import ModelRef

Eventually = Callable[..., Awaitable[None]]


def release_of(releases: Releases, policy: ModelRef) -> str:
    assert releases.reward is not None
    return releases.registry.create_release(policy, releases.reward).id


async def test_exactly_the_wanted_servers_run_from_a_share_to_its_end_and_to_a_promotion(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    registry = releases.registry
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    tried = release_of(releases, releases.publish("b"))
    registry.canary("default", tried, 0.1, by="test")
    await eventually(lambda: agent.states() == {"1": "active", "2": "ready"}, what=agent.states)
    assert agent.endpoint(2) and len(pids(agent)) == 2

    registry.stop_canary("default", by="test")
    await eventually(lambda: agent.states() == {"1": "active", "2": "draining"}, what=agent.states)
    releases.gateway(3, release=first, leases={tried: 1})
    await asyncio.sleep(2 * SETTLE)
    assert agent.states()["2"] == "draining", "a gateway holds a lease"

    def stopped() -> bool:
        releases.gateway(3, release=first)
        return agent.states() == {"2": "retired", "1": "active"}

    await eventually(stopped, what=agent.states)
    served = pids(agent)
    assert len(served) == 1

    tried = release_of(releases, releases.publish("c"))
    registry.canary("default", tried, 0.1, by="test")
    await eventually(lambda: agent.states().get("3") == "ready", what=agent.states)
    before = pids(agent)
    registry.promote("default", tried, expected_generation=None, by="test")
    await active(agent, eventually, 3)
    assert pids(agent) == before and agent.states()["1"] == "draining", "its promotion cost no start"
    releases.gateway(5, release=tried)
    await eventually(lambda: agent.states()["1"] == "retired", what=agent.states)
    assert pids(agent) == before[1:]


async def test_a_server_with_a_share_that_dies_is_started_again_and_the_active_one_goes_on(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    releases.registry.canary("default", release_of(releases, releases.publish("b")), 0.1, by="test")
    await eventually(lambda: agent.states().get("2") == "ready", what=agent.states)
    before = pids(agent)
    server = agent.reconciler._slots[1].server
    assert server is not None
    await server._tree.kill()
    await eventually(lambda: agent.states()["2"] != "ready", what=agent.states)
    assert agent.states()["1"] == "active" and agent.reconciler.readiness().ready
    await eventually(lambda: agent.states() == {"1": "active", "2": "ready"}, what=agent.states)
    assert pids(agent)[0] == before[0] and pids(agent)[1] != before[1]
