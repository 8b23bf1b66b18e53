"""`docs/failure-table.md`, rows about policy, reward, callers, clock and disk: the real application over real sockets.

Each fault: what the caller sees, what the metrics call it, and that nothing is left of the request afterwards: no
candidate in flight, no lease, no place, no task, no connection that still waits for an answer.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.metrics import GatewayMetrics
from acemath_registry import Registry
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, eventually_true, served
from doubles.ports import POLICY, REWARD, TARGET, FixedRelease
from doubles.servers import EVENT_STREAM, RawServer, Script, chunked, client_of, until_closed, unused_url
from doubles.valkey import ValkeyServer

SOLVE = {"problem": PROBLEM, "n": 2, "seed": 0}
BY_VOTE = {"on_scorer_failure": "majority"}
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
            assert await self.metric(gauge) == 0, gauge


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


# ---------------------------------------------------------------------------------------------------------- the policy

POLICY_GIVES_NOTHING: dict[str, tuple[Script | str, str]] = {
    "dead": (DEAD, "unreachable"),
    "answers 500": (whole("500 Oops", b"{}"), "broken"),
    "closes without an answer": (says(), "broken"),
    "resets before its answer": (resets(), "broken"),
    "answers a web page": (HTML, "broken"),
    "answers binary": (says(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20), "broken"),
    "streams what is no JSON": (says(STREAM, chunked(b"data: {]\n\n")), "broken"),
    "streams what is no UTF-8": (says(STREAM, chunked(b"data: \xff\xfe\n\n")), "broken"),
    "streams nobody's candidate": (says(STREAM, event(7, "x")), "broken"),
    "is another version": (says(STREAM, event(0, "x", model="p@s9-ffffffffffff")), "mismatch"),
    "changes its version at the end": (
        says(STREAM, event(0, "\\boxed{24}"), event(1, "\\boxed{24}"), end("p@s9-ffffffffffff")),
        "mismatch",
    ),
    "says that its engine is dead": (says(STREAM, chunked(b'data: {"error": {"code": 500}}\n\n')), "broken"),
    "resets before any candidate ends": (resets(STREAM, event(0, "3 * 8", ends=False)), "broken"),
}


@pytest.mark.parametrize("fault", POLICY_GIVES_NOTHING)
async def test_a_policy_that_gives_nothing_is_a_503_that_may_be_tried_again(fault: str) -> None:
    script, result = POLICY_GIVES_NOTHING[fault]
    async with faulty(policy=script) as gateway:
        reply = await gateway.solve()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "policy_unavailable"), reply.text
        assert int(reply.headers["retry-after"]) >= 1
        assert set(gateway.calls("policy")) == {result}
        assert await gateway.metric("requests_total", outcome="failed") == 1


@pytest.mark.parametrize("script", [silent, drips], ids=["silent", "comments only"])
async def test_a_policy_that_is_slow_is_waited_for_until_the_deadline(script: Script) -> None:
    async with faulty(policy=script) as gateway:
        started = time.monotonic()
        reply = await gateway.solve(deadline_seconds=0.5)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert reply.headers["x-should-retry"] == "false" and time.monotonic() - started < 30
        assert gateway.calls("policy") == {"timeout": 1}


async def test_a_stream_that_is_reset_in_the_middle_keeps_what_had_ended() -> None:
    async with faulty(policy=resets(STREAM, event(0, "\\boxed{24}"), event(1, "8 +", ends=False))) as gateway:
        solution = (await gateway.solve(candidates="scores")).json()
        assert (solution["answer"], solution["stop_reason"]) == ("24", "policy_failed")
        assert (solution["degraded_reason"], solution["n_generated"]) == ("fewer_candidates", 1)
        assert gateway.calls("policy") == {"broken": 1}
        assert await gateway.metric("candidates_total", result="failed") == 1
        assert await gateway.metric("requests_total", outcome="degraded") == 1


# ---------------------------------------------------------------------------------------------------------- the reward

REWARD_GIVES_NOTHING: dict[str, tuple[Script | str, str, str]] = {
    "dead": (DEAD, "unreachable", "reward_unavailable"),
    "answers 500": (whole("500 Oops", b"{}"), "broken", "reward_unavailable"),
    "answers a web page": (HTML, "broken", "reward_unavailable"),
    "resets in its answer": (resets(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"), "broken", "reward_unavailable"),
    "scores with NaN": (score(float("nan")), "broken", "reward_unavailable"),
    "scores with a text": (score("high"), "broken", "reward_unavailable"),
    "scores with another version": (score(1.0, "r@s9-ffffffffffff"), "mismatch", "reward_unavailable"),
    "never stops talking": (
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[chunked(b" " * 65_536)] * 40),
        "broken",
        "reward_unavailable",
    ),
    "is full": (whole("503 Full", b"{}"), "overloaded", "reward_overloaded"),
}


@pytest.mark.parametrize("fault", REWARD_GIVES_NOTHING)
async def test_a_reward_service_that_gives_nothing_is_an_error_or_a_declared_vote(fault: str) -> None:
    script, result, code = REWARD_GIVES_NOTHING[fault]
    async with faulty(reward=script) as gateway:
        limit = {"deadline_seconds": 1.0} if result == "overloaded" else {}
        reply = await gateway.solve(**limit)
        ends = {(503, code)} | ({(504, "deadline_exceeded")} if limit else set())  # the deadline may end the retries
        assert (reply.status_code, reply.json()["error"]["code"]) in ends, reply.text
        assert reply.status_code == 504 or int(reply.headers["retry-after"]) >= 1
        voted = (await gateway.solve(**limit, **BY_VOTE)).json()
        assert (voted["answer"], voted["degraded_reason"], voted["n_scored"]) == ("24", "scorer_failed", 0)
        assert voted["score"] is None
        assert result in gateway.calls("reward") and "ok" not in gateway.calls("reward")
        outcomes = [await gateway.metric("requests_total", outcome=one) for one in ("failed", "degraded", "ok")]
        assert outcomes == [1, 1, 0]


async def test_a_reward_service_that_is_slow_is_waited_for_until_the_deadline() -> None:
    async with faulty(reward=silent) as gateway:
        reply = await gateway.solve(deadline_seconds=0.6)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        voted = (await gateway.solve(deadline_seconds=0.6, **BY_VOTE)).json()
        assert (voted["answer"], voted["stop_reason"], voted["degraded"]) == ("24", "deadline", True)
        assert set(gateway.calls("reward")) <= {"timeout", "cancelled"}


async def test_a_reward_service_that_begins_to_talk_nonsense_costs_the_candidates_that_it_reads_so() -> None:
    asked = itertools.count()

    async def well_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (HTML if next(asked) else SCORED)(reader, writer)

    async def one_after_the_other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(STREAM, event(0, "\\boxed{24}"))(reader, writer)
        await asyncio.sleep(0.3)
        await says(event(1, "so \\boxed{11}"), end())(reader, writer)

    async with faulty(policy=one_after_the_other, reward=well_once) as gateway:
        solution = (await gateway.solve()).json()
        assert (solution["answer"], solution["score"], solution["n_scored"]) == ("24", 1.5, 1)
        assert solution["degraded_reason"] == "partly_scored"
        assert gateway.calls("reward") == {"ok": 1, "broken": 2}  # what is no answer is asked for once more


# ------------------------------------------------------------------------------------------------- the caller leaves


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("stage", ["queued", "generating", "scoring"])
async def test_a_caller_that_leaves_takes_everything_along(stage: str, stream: bool) -> None:
    scripts = {"queued": (silent, SCORED), "generating": (silent, SCORED), "scoring": (WELL, silent)}
    policy, reward = scripts[stage]
    async with faulty(policy=policy, reward=reward, settings={"max_queue_seconds": 20}) as gateway:
        held = gateway.servers[1 if stage == "scoring" else 0]
        if stage == "queued":
            gateway.gateway.limit.held = gateway.gateway.limit.places  # somebody else has all places
        asking = asyncio.create_task(gateway.solve(stream=stream))
        if stage == "queued":
            await gateway.becomes(1, "queued_requests")
        else:
            await eventually(lambda: held.open > 0)
        asking.cancel()
        await asyncio.wait({asking})
        await gateway.becomes(0, "queued_requests")
        if stage == "queued":
            gateway.gateway.limit.held = 0  # nobody is left who could be let in
        await eventually(lambda: held.open == 0 and gateway.gateway.release.held == 0)
        await gateway.becomes(1, "disconnects_total")
        assert await gateway.metric("requests_total", outcome="cancelled") == (0 if stage == "queued" else 1)
        if stage == "generating":
            assert gateway.calls("policy") == {"cancelled": 1}
        if stage == "scoring":
            assert set(gateway.calls("reward")) == {"cancelled"}


# ------------------------------------------------------------------------------------------------------ clock and disk


async def test_a_clock_that_jumps_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, itertools.cycle([0.0, 86_400.0, -86_400.0, 3600.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    async with faulty() as gateway:
        for _ in range(4):
            solution = (await gateway.solve(deadline_seconds=5)).json()
            assert (solution["answer"], solution["stop_reason"]) == ("24", "complete")
            assert all(value is None or 0 <= value < 5 for value in solution["timings"].values())
        assert set(gateway.calls("policy")) == set(gateway.calls("reward")) == {"ok"}
    async with faulty(policy=silent) as gateway:
        started = time.monotonic()
        assert (await gateway.solve(deadline_seconds=0.5)).status_code == 504
        assert 0.3 < time.monotonic() - started < 30


async def test_a_full_disk_under_the_registry_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    registry = Registry(tmp_path)
    monkeypatch.setattr(registry, "write_status", full)
    leases = StatusFileLeases(registry, instance="a")
    for _ in range(3):
        await leases.assert_leases(1, "r-1", {"r-1": 1})
    assert caplog.text.count("No space left") == 1  # said once; the record runs out and means "unknown", never zero
    monkeypatch.undo()
    await leases.assert_leases(1, "r-1", {"r-1": 1})
    assert json.loads((tmp_path / "status" / "gateway" / "a.json").read_text())["leases"] == {"r-1": 1}


async def test_a_redis_that_can_take_no_more_is_as_one_that_is_down(tmp_path: Any) -> None:
    settings = {"local_max_sequences": 4, "max_queued_requests": 0}
    with ValkeyServer(tmp_path) as valkey:
        async with faulty(settings=settings, redis_url=valkey.url) as gateway:
            assert (await gateway.solve()).status_code == 200
            assert (
                valkey.ask("CONFIG SET min-replicas-to-write 1") == b"+OK\r\n"
            )  # every write is refused, as with a full disk
            for _ in range(3):
                assert (await gateway.solve()).status_code == 200
            refused = await gateway.http.post("/v1/solve", json=SOLVE, headers={"idempotency-key": "k"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "idempotency_unavailable")
            assert await gateway.metric("admissions_total", limit="local") >= 3
            assert valkey.ask("CONFIG SET min-replicas-to-write 0") == b"+OK\r\n"

            async def kept() -> bool:
                reply = await gateway.http.post("/v1/solve", json=SOLVE, headers={"idempotency-key": "k"})
                return reply.status_code == 200

            await eventually_true(kept)
