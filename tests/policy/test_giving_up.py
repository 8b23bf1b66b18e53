"""A version of which only this half was good makes room for the next release, and nothing that a gateway uses goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from policy.conftest import KEY, SETTLE, Agent, Agents, Releases
from policy.test_reconcile import active, pids

from acemath_registry import Served

Eventually = Callable[..., Awaitable[None]]


class World:
    """P1 serves; P2 came up, and no gateway used it since its reward version was bad; P3 is named."""

    def __init__(self, agent: Agent, releases: Releases, eventually: Eventually) -> None:
        self.agent, self.releases, self.eventually = agent, releases, eventually
        self.ids: list[str] = []

    async def begin(self) -> None:
        for mark in "ab":
            self.ids.append(self.releases.promote(self.releases.publish(mark)))
            await active(self.agent, self.eventually, len(self.ids))
            self.routed(1)
        self.ids.append(self.releases.promote(self.releases.publish("c")))

    def routed(self, generation: int, name: str = "g1", **more: Any) -> None:
        self.releases.gateway(generation, name=name, release=self.ids[generation - 1], **more)

    async def beats(self, condition: Callable[[], bool], **gateways: int) -> None:
        """Heartbeats of gateways (name → generation) until a condition holds."""

        def holds() -> bool:
            for name, generation in gateways.items():
                self.routed(generation, name)
            return condition()

        await self.eventually(holds, what=lambda: (self.agent.reconciler.slots(), self.waiting()))

    async def beat_for(self, seconds: float, **gateways: int) -> None:
        until = asyncio.get_running_loop().time() + seconds
        await self.beats(lambda: asyncio.get_running_loop().time() > until, **gateways)

    def waiting(self) -> str:
        return str(self.agent.reconciler.readiness().details["waiting"])

    def gauge(self) -> float | None:
        return self.agent.metrics.get_sample_value("acemath_policy_swap_waiting")


@pytest.fixture
async def world(agents: Agents, releases: Releases, eventually: Eventually) -> World:
    made = World(agents.start(), releases, eventually)
    await made.begin()
    return made


async def test_the_next_good_release_goes_in_after_one_whose_other_half_was_bad(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agent, served, ready = world.agent, pids(world.agent)[0], list[bool]()
    await world.beats(lambda: agent.states() == {"1": "active", "2": "draining"}, g1=1)
    assert "s1-" in world.waiting() and "active (gateway g1: it still routes by generation 1)" in world.waiting()
    assert "draining (no gateway uses it" in world.waiting() and world.gauge() == 1
    assert world.releases.registry.read_status("policy", "0")["waiting"] == world.waiting()

    def arrived() -> bool:
        ready.append(agent.reconciler.readiness().ready)
        return agent.states().get("3") == "active"

    await world.beats(arrived, g1=1)
    assert all(ready) and agent.states() == {"2": "retired", "1": "draining", "3": "active"}
    assert pids(agent)[0] == served and agent.endpoint(1), "the server that gateways use was never touched"
    assert world.gauge() == 0 and world.waiting() == "None"
    await world.beats(lambda: agent.states()["1"] == "retired", g1=3)
    assert 1 <= sum("waits for a place" in record.message for record in caplog.records) <= 4


async def test_a_request_that_the_channel_overtook_finishes_on_the_version_that_is_taken_back(world: World) -> None:
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    body = {"prompt": [1], "max_tokens": 4, "seed": 0}
    async with httpx.AsyncClient(base_url=world.agent.endpoint(1), headers=headers) as client:

        async def ask() -> None:
            for _ in range(20):
                assert (await client.post("/v1/completions", json=body)).status_code == 200

        await asyncio.gather(ask(), world.beats(lambda: world.agent.states().get("3") == "active", g1=1))


@pytest.mark.parametrize("record", ["missing", "old", "damaged", "nameless"])
async def test_what_is_not_known_of_a_gateway_moves_nothing(world: World, record: str) -> None:
    registry = world.releases.registry
    await world.beats(lambda: world.agent.states() == {"1": "active", "2": "draining"}, g1=1)
    path = registry.root / "status" / "gateway" / "g1.json"
    {
        "missing": path.unlink,
        "old": lambda: world.routed(1, age=100),
        "damaged": lambda: path.write_text("{"),
        "nameless": lambda: world.releases.gateway(1, name="g1"),
    }[record]()
    await asyncio.sleep(3 * SETTLE)
    assert world.agent.states() == {"1": "active", "2": "draining"} and world.agent.reconciler.readiness().ready
    await world.beats(lambda: world.agent.states().get("3") == "active", g1=1)


async def test_a_record_from_before_the_move_stops_nothing(world: World) -> None:
    await world.eventually(lambda: world.agent.states() == {"1": "active", "2": "draining"})
    await asyncio.sleep(2 * SETTLE)
    assert world.agent.states()["2"] == "draining", "what g1 made of its last look is not known yet"
    assert "until their records are newer" in world.waiting()
    await world.beats(lambda: world.agent.states().get("3") == "active", g1=1)


async def test_a_gateway_that_flipped_after_all_keeps_its_version_and_the_other_goes(world: World) -> None:
    agent = world.agent
    await world.beats(lambda: agent.states() == {"1": "active", "2": "draining"}, g1=1)
    await world.beats(lambda: "3" in agent.states(), g1=2)
    assert (agent.states()["1"], agent.states()["2"]) == ("retired", "active")


async def test_of_several_gateways_one_flipped_and_both_versions_stay_until_the_others_follow(world: World) -> None:
    agent = world.agent
    await world.beats(lambda: "gateway g1: it still routes by generation 2" in world.waiting(), g1=2, g2=1)
    await world.beat_for(4 * SETTLE, g1=2, g2=1)
    assert agent.states() == {"1": "draining", "2": "active"}, "the newer one is what g2 may step forward to"
    assert "gateway g1: it still routes by generation 2" in world.waiting()
    await world.beats(lambda: agent.states().get("3") == "active", g1=2, g2=2)
    assert agent.states() == {"1": "retired", "2": "draining", "3": "active"}


async def test_a_lease_is_use_whatever_a_gateway_routes_by(world: World) -> None:
    kept = {"1": "active", "2": "draining"}

    def held() -> bool:
        world.routed(1, leases={world.ids[1]: 1})
        return world.agent.states() == kept and "gateway g1: it holds leases" in world.waiting()

    await world.eventually(held, what=world.waiting)
    for _ in range(12):
        world.routed(1, leases={world.ids[1]: 1})
        await asyncio.sleep(SETTLE / 4)
    assert world.agent.states() == kept, "kept for the lease, but nothing new goes there"


async def test_a_gateway_that_starts_uses_nothing_and_keeps_nobody_waiting(world: World) -> None:
    await world.eventually(lambda: world.waiting() != "None")

    def arrived() -> bool:
        world.releases.gateway(0, name="g1")
        return world.agent.states().get("3") == "active"

    await world.eventually(arrived, what=world.waiting)
    assert list(world.agent.states().values()) == ["retired", "draining", "active"]


@pytest.mark.parametrize("back_to", [1, 2])
async def test_a_rollback_while_it_waits_takes_the_named_one_at_once(world: World, back_to: int) -> None:
    agent, registry = world.agent, world.releases.registry
    await world.beats(lambda: agent.states() == {"1": "active", "2": "draining"}, g1=1)
    before = pids(agent)
    registry.promote("default", world.ids[back_to - 1], expected_generation=None, by="test")
    await world.beats(lambda: agent.states()[str(back_to)] == "active", g1=1)
    await world.beat_for(2 * SETTLE, g1=1)
    assert agent.states() == {str(back_to): "active", str(3 - back_to): "draining"} and pids(agent) == before
    assert world.gauge() == 0


async def test_a_newer_promotion_while_it_waits_is_what_goes_in(world: World) -> None:
    agent = world.agent
    await world.beats(lambda: agent.states() == {"1": "active", "2": "draining"}, g1=1)
    world.releases.promote(world.releases.publish("d"))
    await world.beats(lambda: agent.states().get("4") == "active", g1=1)
    assert agent.states() == {"2": "retired", "1": "draining", "4": "active"}


async def test_a_restarted_agent_brings_back_what_gateways_route_by_beside_what_is_named(
    world: World, agents: Agents
) -> None:
    await world.beats(lambda: world.agent.states() == {"1": "active", "2": "draining"}, g1=1)
    world.agent.rounds.cancel()
    await world.agent.reconciler.close()
    world.agent = agents.start()
    await world.beats(lambda: world.agent.states() == {"1": "draining", "3": "active"}, g1=1)
    assert world.agent.endpoint(1), "whoever still routes by it is served"
    await world.beats(lambda: world.agent.states() == {"1": "retired", "3": "active"}, g1=3)


@pytest.mark.parametrize("gateways", ["stopped", "one was killed long ago"])
async def test_after_a_restart_of_all_what_was_served_last_comes_back_beside_a_bad_release(
    world: World, agents: Agents, gateways: str
) -> None:
    """No gateway says what it routes by, and what is named will never serve: without this there would be nothing."""
    registry = world.releases.registry
    registry.note_served("default", Served(world.ids[0], 1), by="g1")
    await world.beats(lambda: world.agent.states() == {"1": "active", "2": "draining"}, g1=1)
    world.agent.rounds.cancel()
    await world.agent.reconciler.close()
    registry.remove_status("gateway", "g1")
    if gateways != "stopped":
        world.releases.gateway(1, name="g2", release=world.ids[0], age=1e6)
    bad = registry.path(registry.release(world.ids[2]).policy.ref) / "tokenizer.json"
    bad.chmod(0o644)
    bad.write_text("{}")
    world.agent = agents.start()
    await world.eventually(lambda: world.agent.states() == {"1": "active", "3": "rejected"}, what=world.agent.states)


async def test_what_was_served_last_is_not_started_where_it_is_what_is_named(world: World, agents: Agents) -> None:
    world.releases.registry.note_served("default", Served(world.ids[2], 3), by="g1")
    world.agent.rounds.cancel()
    await world.agent.reconciler.close()
    world.releases.registry.remove_status("gateway", "g1")
    world.agent = agents.start()
    await world.eventually(lambda: world.agent.states() == {"3": "active"}, what=world.agent.states)
    assert len(world.agent.reconciler.slots()) == 1


async def test_a_crash_of_the_version_in_use_keeps_its_place(world: World) -> None:
    agent = world.agent
    await world.beats(lambda: agent.states() == {"1": "active", "2": "draining"}, g1=1)
    server = agent.reconciler._slots[0].server
    assert server is not None
    await server._tree.kill()
    await world.beats(lambda: agent.states()["1"] != "active", g1=1)
    await world.beats(lambda: agent.states().get("3") == "active", g1=1)
    await world.beats(lambda: agent.states()["1"] in ("ready", "draining"), g1=1)
    assert agent.states()["2"] == "retired"
