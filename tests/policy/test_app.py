"""The agent's HTTP face over a real reconciler and a double of vLLM."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import httpx
from policy.conftest import KEY, Agent, Agents, Releases

from acemath_policy.app import create_app
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.reconcile import Reconciler

Eventually = Callable[..., Awaitable[None]]
HEADERS = {"Authorization": f"Bearer {KEY.get_secret_value()}"}


def client_of(agent: Agent) -> httpx.AsyncClient:
    def same(_: PolicyMetrics) -> Reconciler:
        return agent.reconciler

    transport = httpx.ASGITransport(app=create_app(same, KEY))  # the lifespan is not run: the fixture's loop works
    return httpx.AsyncClient(transport=transport, base_url="http://agent")


async def test_slots_targets_and_probes(agents: Agents, releases: Releases, eventually: Eventually) -> None:
    agent = agents.start()
    async with client_of(agent) as client:
        assert (await client.get("/livez")).status_code == 200
        before = await client.get("/readyz")
        assert (before.status_code, before.json()["ready"]) == (503, False)
        assert (await client.get("/v1/slots", headers=HEADERS)).json() == []
        ref = releases.publish("a")
        releases.promote(ref)
        await eventually(lambda: agent.states().get("1") == "active", what=agent.states)
        slot = (await client.get("/v1/slots", headers=HEADERS)).json()[0]
        assert set(slot) == {"version", "state", "endpoint", "since", "reason", "max_sequences", "cache_tokens"}
        assert (slot["version"], slot["state"]) == (str(ref), "active")
        assert abs(slot["since"] - time.time()) < 30
        targets = (await client.get("/v1/targets")).json()
        assert targets == [{"targets": [slot["endpoint"].removeprefix("http://")], "labels": {"version": str(ref)}}]
        verbose = (await client.get("/readyz?verbose", headers=HEADERS)).json()
        assert verbose["details"]["active"] == str(ref)


async def test_readyz_answers_from_memory(agents: Agents, releases: Releases, eventually: Eventually) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await eventually(lambda: agent.states().get("1") == "active", what=agent.states)
    took = []
    async with client_of(agent) as client:
        for _ in range(50):
            begun = time.perf_counter()
            assert (await client.get("/readyz")).status_code == 200
            took.append(time.perf_counter() - begun)
    assert sorted(took)[25] < 0.05


async def test_slots_ask_for_the_key_and_errors_have_one_shape(agents: Agents) -> None:
    async with client_of(agents.start()) as client:
        refused = await client.get("/v1/slots")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        missing = await client.get("/v1/nothing", headers=HEADERS)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
