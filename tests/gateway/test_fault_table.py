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
from typing import Any

import pytest
from gateway.faulty import (
    DEAD,
    HTML,
    SCORED,
    SOLVE,
    STREAM,
    WELL,
    drips,
    end,
    event,
    faulty,
    resets,
    says,
    score,
    silent,
    whole,
)

from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_registry import Registry
from doubles.gateway_app import eventually, eventually_true
from doubles.servers import Script, chunked
from doubles.valkey import ValkeyServer

BY_VOTE = {"on_scorer_failure": "majority"}


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
        reply = await gateway.solve(deadline_seconds=2.0)
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
        limit = {"deadline_seconds": 2.5} if result == "overloaded" else {}
        reply = await gateway.solve(**limit)
        ends = {(503, code)} | ({(504, "deadline_exceeded")} if limit else set())  # the deadline may end the retries
        assert (reply.status_code, reply.json()["error"]["code"]) in ends, reply.text
        assert reply.status_code == 504 or int(reply.headers["retry-after"]) >= 1
        voted = (await gateway.solve(**limit, **BY_VOTE)).json()
        assert (voted["answer"], voted["degraded_reason"], voted["n_scored"]) == ("24", "scorer_failed", 0)
        assert voted["score"] is None
        assert result in gateway.calls("reward") and "ok" not in gateway.calls("reward")
        ended = "deadline" if reply.status_code == 504 else "failed"
        outcomes = [await gateway.metric("requests_total", outcome=one) for one in (ended, "degraded", "ok")]
        assert outcomes == [1, 1, 0]


async def test_a_reward_service_that_is_slow_is_waited_for_until_the_deadline() -> None:
    async with faulty(reward=silent) as gateway:
        reply = await gateway.solve(deadline_seconds=0.6)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        voted = (await gateway.solve(deadline_seconds=2.5, **BY_VOTE)).json()
        assert (voted["answer"], voted["stop_reason"], voted["degraded"]) == ("24", "deadline", True)
        assert set(gateway.calls("reward")) <= {"timeout", "cancelled"}


async def test_a_reward_service_that_begins_to_talk_nonsense_costs_the_candidates_that_it_reads_so() -> None:
    asked = itertools.count()

    async def well_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (HTML if next(asked) else SCORED)(reader, writer)

    async def one_after_the_other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(STREAM, event(0, "\\boxed{24}"))(reader, writer)
        await eventually(lambda: gateway.calls("reward") == {"ok": 1})  # the first has its score
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
        await gateway.becomes(0 if stage == "queued" else 1, "requests_total", outcome="cancelled")
        if stage == "generating":
            await eventually(lambda: gateway.calls("policy") == {"cancelled": 1})
        if stage == "scoring":
            await eventually(lambda: set(gateway.calls("reward")) == {"cancelled"})


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
    leases = StatusFileLeases(registry, instance="a", channel="default")
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
