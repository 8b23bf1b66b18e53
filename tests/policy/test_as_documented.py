"""The agent answers what its `/openapi.json` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
from documents.cases import check_all
from policy.conftest import KEY, Agents, Releases

from acemath_policy.app import create_app


async def test_every_answer_is_one_that_the_document_has(
    agents: Agents, releases: Releases, eventually: Callable[..., Awaitable[None]]
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await eventually(lambda: agent.states().get("1") == "active", what=agent.states)
    transport = httpx.ASGITransport(app=create_app(lambda _: agent.reconciler, KEY))
    key = {"authorization": f"Bearer {KEY.get_secret_value()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://agent", headers=key) as http:
        assert await check_all(http, (await http.get("/openapi.json")).json()) == 5
