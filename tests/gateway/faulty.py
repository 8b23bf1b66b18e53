"""A gateway on real adapters before servers that fail as scripted, and what it must have told afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.metrics import GatewayMetrics
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, eventually_true, served
from doubles.ports import POLICY, REWARD, TARGET, FixedRelease
from doubles.servers import EVENT_STREAM, RawServer, Script, chunked, client_of, until_closed, unused_url

SOLVE = {"problem": PROBLEM, "n": 2, "seed": 0}
DEAD = "dead"
STREAM = EVENT_STREAM.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def event(index: int, text: str, *, ends: bool = True, model: str = POLICY) -> bytes:
    """One chunk of vLLM's for one candidate."""
    ends_with = {"finish_reason": "stop"} if ends else {"finish_reason": None}
    choice = {"index": index, "text": text, "token_ids": [1, 2], **ends_with}
    return chunked(b"data: " + json.dumps({"model": model, "choices": [choice]}).encode() + b"\n\n")


def end(model: str = POLICY) -> bytes:
    """The last chunk, with the fingerprint, and the end of the body."""
    last = {"model": model, "choices": [], "system_fingerprint": model}
    return chunked(b"data: " + json.dumps(last).encode() + b"\n\n") + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def says(*pieces: bytes) -> Script:
    """A server that sends these bytes and closes the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        await asyncio.sleep(0.02)

    return script


def resets(*pieces: bytes) -> Script:
    """The same, ending with a reset instead."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(*pieces)(reader, writer)
        writer.transport.abort()

    return script


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes a request and never answers."""
    await until_closed(reader)


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that keeps the connection busy and gives nothing."""
    writer.write(STREAM)
    while not reader.at_eof():
        writer.write(chunked(b": still here\n\n"))
        await writer.drain()
        await asyncio.sleep(0.02)


def whole(status: str, body: bytes, kind: str = "application/json") -> Script:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", "connection: close"]
    return says("\r\n".join([*lines, "", ""]).encode() + body)


def score(value: object, model: str = REWARD) -> Script:
    """The reward service's answer with one score."""
    usage = {"prompt_tokens": 1, "candidate_tokens": 1, "total_tokens": 2}
    timings = dict.fromkeys(["tokenize_seconds", "queue_seconds", "compute_seconds", "total_seconds"], 0.0)
    said = {"model": model, "data": [{"index": 0, "score": value, "tokens": 1}], "usage": usage, "timings": timings}
    return whole("200 OK", json.dumps(said).encode())


WELL = says(STREAM, event(0, "\\boxed{24}"), event(1, "so \\boxed{24}"), end())
SCORED = score(1.5)
HTML = whole("200 OK", b"<html>It works!</html>", "text/html")


@dataclass
class Faulty:
    """A gateway before one policy server and one reward service."""

    http: httpx.AsyncClient
    gateway: GatewayOnDoubles
    servers: list[RawServer]
    behind: CollectorRegistry

    async def solve(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/solve", json=SOLVE | fields)

    def calls(self, role: str) -> dict[str, float]:
        """Calls to a kind of service by result, without those that never were."""
        found: dict[str, float] = {}
        for family in self.behind.collect():
            for sample in family.samples:
                if (
                    sample.name == "acemath_gateway_upstream_calls_total"
                    and sample.labels["role"] == role
                    and sample.value
                ):
                    found[sample.labels["result"]] = sample.value
        return found

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as `/metrics` shows them."""
        text = (await self.http.get("/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"acemath_gateway_{name}" and labels.items() <= sample.labels.items()
        )

    async def becomes(self, value: float, name: str, **labels: str) -> None:
        """Wait until a metric has this value."""

        async def has_come() -> bool:
            return await self.metric(name, **labels) == value

        await eventually_true(has_come)

    async def nothing_is_left(self) -> None:
        """No candidate, lease, place, score or connection of any request."""
        await eventually(lambda: self.gateway.release.held == 0 and self.gateway.limit.held == 0)
        await eventually(lambda: not any(server.open for server in self.servers))
        for gauge in ("inflight_requests", "inflight_sequences", "scoring_queue"):
            await self.becomes(0, gauge)


@asynccontextmanager
async def faulty(policy: Script | str = WELL, reward: Script | str = SCORED, **more: Any) -> AsyncIterator[Faulty]:
    before = asyncio.all_tasks()
    behind = CollectorRegistry()
    upstreams = [Upstream(role, key=None, metrics=GatewayMetrics.on(behind)) for role in ("policy",)]
    upstreams.append(Upstream("reward", key=None, metrics=upstreams[0].metrics))
    servers = [RawServer(silent if isinstance(script, str) else script) for script in (policy, reward)]
    async with servers[0].serving() as first, servers[1].serving() as second:
        urls = [unused_url() if script == DEAD else url for script, url in ((policy, first), (reward, second))]
        target = replace(TARGET, policy_endpoints=(urls[0],), reward_endpoints=(urls[1],), context_length=None)
        adapters = {"policy": VllmPolicy(upstreams[0]), "scorer": HttpScorer(upstreams[1], most_together=1)}
        gateway = GatewayOnDoubles(release=FixedRelease(target), **(adapters | more))
        async with served(gateway.app()) as url, client_of(url) as http:
            made = Faulty(http, gateway, servers, behind)
            yield made
            await made.nothing_is_left()
        for upstream in upstreams:
            await upstream.close()
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
