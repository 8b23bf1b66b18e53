"""Clients of gateways that work on jobs, and what they ask most."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually_true, served
from doubles.servers import client_of

NDJSON = {"content-type": "application/x-ndjson"}
HASTY = {"job_idle_seconds": 1.0}
PATIENT = {"job_idle_seconds": 60.0}
"""No line goes to another worker, nor a second time to its own, but by `grow_idle`, however busy the machine is."""


def gateway(valkey, name: str = "g", **other) -> GatewayOnDoubles:
    settings = {"instance": name, "redis_timeout_seconds": 3.0} | HASTY | other.pop("settings", {})
    return GatewayOnDoubles(redis_url=valkey.url, settings=settings, **other)


@asynccontextmanager
async def clients(*gateways: GatewayOnDoubles, **more):
    async with AsyncExitStack() as stack:
        opened = []
        for one in gateways:
            url = await stack.enter_async_context(served(one.app()))
            opened.append(await stack.enter_async_context(client_of(url, **more)))
        yield opened if len(opened) > 1 else opened[0]


def file(count: int = 5, **fields) -> bytes:
    lines = ({"problem": f"{number}. {PROBLEM}", "n": 3, "seed": 0} | fields for number in range(1, count + 1))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def submitted(http: httpx.AsyncClient, content: bytes, **headers) -> str:
    answer = await http.post("/v1/jobs", content=content, headers=NDJSON | headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def ended(http: httpx.AsyncClient, job: str, seconds: float = 30.0) -> dict:
    found: dict = {}

    async def look() -> bool:
        answer = await http.get(f"/v1/jobs/{job}")
        if answer.status_code == 200:  # 503 while Redis is away
            found.update(answer.json())
        return found.get("state", "queued") not in ("queued", "running")

    await eventually_true(look, seconds)
    return found


async def rows_of(http: httpx.AsyncClient, job: str, **query) -> list[dict]:
    answer = await http.get(f"/v1/jobs/{job}/results", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]
