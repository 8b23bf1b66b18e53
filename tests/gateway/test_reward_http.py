from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, ServiceError, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters import reward_http
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.metrics import CallResult, GatewayMetrics
from acemath_gateway.ports import ReleaseTarget
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import RawServer, nothing_left, served, until, until_closed, unused_url

CONTEXT: list[ChatMessage] = [{"role": "user", "content": "What is 3 * 8?"}]


class Rig:
    """The adapter and what it counts."""

    def __init__(self, key: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self.upstream = Upstream(
            "reward", key=SecretStr(key) if key else None, metrics=GatewayMetrics.on(self.registry)
        )
        self.scorer = HttpScorer(self.upstream)

    async def score(self, *endpoints: str, text: str = "\\boxed{24}", seconds: float = 5.0) -> float:
        return await self.score_by(Deadline.after(seconds), *endpoints, text=text)

    async def score_by(self, deadline: Deadline, *endpoints: str, text: str) -> float:
        async with self.scorer.session(target(*endpoints), CONTEXT, deadline) as session:
            return await session.score(0, text)

    def calls(self, result: str) -> float:
        return self.metric("upstream_calls_total", role="reward", result=result)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


def target(*endpoints: str) -> ReleaseTarget:
    return ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (), endpoints)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    waits = {CallResult.OVERLOADED: 0.01, CallResult.LATE: 0.02}
    monkeypatch.setattr(reward_http, "_FIRST_WAIT_SECONDS", waits)
    monkeypatch.setattr(reward_http, "_LONGEST_WAIT_SECONDS", 0.05)
    rig = Rig()
    async with nothing_left(rig.upstream.close):
        yield rig


@pytest.fixture
def reward() -> FakeReward:
    return FakeReward(TARGET.reward)


async def test_a_score_and_what_was_asked(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.score(url) == score_of("\\boxed{24}")
    (request,) = reward.requests
    assert request.model == TARGET.reward
    assert request.messages is not None
    assert [(turn.role, turn.content) for turn in request.messages] == [("user", "What is 3 * 8?")]
    assert request.candidates == ["\\boxed{24}"]
    assert 0 < int(reward.deadlines[0] or 0) <= 5000
    assert rig.calls("ok") == 1


async def test_the_key_is_shown() -> None:
    for key, ok in (("secret", True), ("wrong", False)):
        rig = Rig(key)
        async with served(FakeReward(TARGET.reward, key="secret").app) as url:
            if ok:
                await rig.score(url)
                assert [slot.version for slot in await HttpSlots(rig.upstream).slots(url)] == [TARGET.reward]
            else:
                with pytest.raises(Unavailable):
                    await rig.score(url)
        await rig.upstream.close()


async def test_a_candidate_that_is_too_long_is_refused(rig: Rig) -> None:
    async with served(FakeReward(TARGET.reward, max_tokens=10).app) as url:
        with pytest.raises(InvalidRequest) as caught:
            await rig.score(url, text="word " * 20)
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert rig.calls("refused") == 1


async def test_another_version_is_not_used(rig: Rig) -> None:
    async with served(FakeReward("other@s1-000000000009").app) as url:
        with pytest.raises(Unavailable) as caught:
            await rig.score(url)
    assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE
    assert rig.calls("not_served") == 1
    assert rig.metric("version_mismatch_total", role="reward") == 0  # it said so, and gave nothing


@pytest.mark.parametrize("status", [404, 409])
async def test_another_service_at_the_address_is_no_matter_of_versions(rig: Rig, status: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nnope" % status)
        await writer.drain()

    async with RawServer(script).serving() as url:
        with pytest.raises(Unavailable):
            await rig.score(url)
    assert rig.calls("broken") == 2 and rig.calls("not_served") == rig.calls("mismatch") == 0


async def test_an_overloaded_service_is_waited_for(rig: Rig, reward: FakeReward) -> None:
    reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED)
    async with served(reward.app) as url:
        scoring = asyncio.create_task(rig.score(url, seconds=20))
        await until(lambda: len(reward.requests) >= 12)  # as long as there is time
        reward.failure = None
        assert await scoring == score_of("\\boxed{24}")
    assert rig.metric("upstream_retries_total", role="reward") >= 12


async def test_an_overloaded_service_is_left_alone_for_as_long_as_it_asks(rig: Rig, reward: FakeReward) -> None:
    reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED, retry_after=1)
    async with served(reward.app) as url:
        started, scoring = time.monotonic(), asyncio.create_task(rig.score(url, seconds=20))
        await until(lambda: len(reward.requests) == 1)
        reward.failure = None
        assert await scoring == score_of("\\boxed{24}")
    assert time.monotonic() - started >= 1 and len(reward.requests) == 2


async def test_a_service_that_stays_overloaded_is_an_error_that_says_so(rig: Rig, reward: FakeReward) -> None:
    reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED, retry_after=3)
    async with served(reward.app) as url:
        with pytest.raises(Unavailable) as caught:
            await rig.score(url, seconds=6)
    assert caught.value.code is ErrorCode.REWARD_OVERLOADED
    assert caught.value.retry_after == 3
    assert len(reward.requests) == 2  # a third time would be after the deadline


async def test_a_service_that_ran_out_of_its_own_time_is_waited_for_and_not_shunned(
    rig: Rig, reward: FakeReward
) -> None:
    busy = FakeReward(TARGET.reward)
    busy.failure = DeadlineExceeded("120 s were not enough")
    async with served(busy.app) as one:
        scoring = asyncio.create_task(rig.score(one))
        await until(lambda: len(busy.requests) == 1)
        assert rig.upstream.replicas.order([one, "http://other"])
        assert not rig.metric("breaker_opens_total", role="reward")
        busy.failure = None
        assert await scoring == score_of("\\boxed{24}")
    assert (rig.calls("late"), rig.calls("broken"), rig.metric("upstream_retries_total", role="reward")) == (1, 0, 1)


async def test_a_replica_that_hangs_is_left_for_another_in_time(rig: Rig, reward: FakeReward) -> None:
    stuck = FakeReward(TARGET.reward)
    stuck.gate = asyncio.Event()
    rig.scorer = HttpScorer(rig.upstream, patience_seconds=2.0)
    async with served(stuck.app) as one, served(reward.app) as two:
        scores = await asyncio.gather(*(rig.score(one, two, seconds=20) for _ in range(24)))
        assert scores == [score_of("\\boxed{24}")] * 24
        parked = len(stuck.requests)
        assert rig.calls("timeout") == parked > 0
        await asyncio.gather(*(rig.score(one, two, seconds=20) for _ in range(24)))
        assert len(stuck.requests) == parked  # it was remembered
        await until(lambda: stuck.cancelled == parked)
    assert rig.metric("upstream_retries_total", role="reward") == parked


async def test_half_of_a_short_deadline_is_kept_for_the_other_replica(rig: Rig, reward: FakeReward) -> None:
    stuck = FakeReward(TARGET.reward)
    stuck.gate = asyncio.Event()
    async with served(stuck.app) as one, served(reward.app) as two:
        for _ in range(2):
            assert await rig.score(one, two, seconds=4.5) == score_of("\\boxed{24}")
    assert rig.calls("timeout") == 1


async def test_overload_is_not_waited_for_past_the_deadline(rig: Rig, reward: FakeReward) -> None:
    reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED, retry_after=60)
    deadline = Deadline.after(0.06)
    async with served(reward.app) as url:
        with pytest.raises((Unavailable, DeadlineExceeded)):  # the second where the machine was slower than the answer
            await rig.score_by(deadline, url, text="x")


@pytest.mark.parametrize("error", [ServiceError("this batch failed"), Unavailable("x", code=ErrorCode.NOT_READY)])
async def test_another_replica_is_asked(rig: Rig, reward: FakeReward, error: ServiceError) -> None:
    bad = FakeReward(TARGET.reward)
    bad.failure = error
    async with served(bad.app) as one, served(reward.app) as two:
        for _ in range(4):
            await rig.score(one, unused_url(), two)
    assert rig.calls("ok") == 4


async def test_all_away_is_unavailable(rig: Rig) -> None:
    for endpoints in [(unused_url(),), (unused_url(), unused_url()), ()]:
        with pytest.raises(Unavailable) as caught:
            await rig.score(*endpoints)
        assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE


async def test_a_slow_service_is_left_at_the_deadline_and_told(rig: Rig, reward: FakeReward) -> None:
    reward.delay_seconds = 60
    async with served(reward.app) as url:
        with pytest.raises(DeadlineExceeded):
            await rig.score(url, seconds=2.0)
    assert rig.calls("timeout") == 1


async def test_cancelling_takes_the_call_out_of_the_service(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url:
        scoring = asyncio.create_task(rig.score(url, seconds=60))
        await until(lambda: len(reward.requests) == 1)
        scoring.cancel()
        await asyncio.wait({scoring})
        await until(lambda: reward.cancelled == 1)
    assert rig.calls("cancelled") == 1


def answer(**changes: Any) -> bytes:
    item = {"index": 0, "score": 1.5, "tokens": 9}
    usage = {"prompt_tokens": 1, "candidate_tokens": 1, "total_tokens": 2}
    timings = dict.fromkeys(("tokenize_seconds", "queue_seconds", "compute_seconds", "total_seconds"), 0.0)
    body = {"model": TARGET.reward, "data": [item], "usage": usage, "timings": timings}
    return json.dumps(body | changes).encode()


GARBAGE = {
    "empty": b"",
    "html": b"<html>",
    "no score": answer(data=[]),
    "two scores": answer(data=[{"index": 0, "score": 1, "tokens": 1}] * 2),
    "another index": answer(data=[{"index": 1, "score": 1, "tokens": 1}]),
    "nan": answer(data=[{"index": 0, "score": float("nan"), "tokens": 1}]),
    "infinity": answer(data=[{"index": 0, "score": 1e999, "tokens": 1}]),
    "a text": answer(data=[{"index": 0, "score": "good", "tokens": 1}]),
    "another version": answer(model="other@s1-000000000009"),
    "endless": b"x" * 2_000_000,
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_never_a_score(rig: Rig, kind: str) -> None:
    body = GARBAGE[kind]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    server = RawServer(script)
    async with server.serving() as url:
        with pytest.raises(Unavailable) as caught:
            await rig.score(url)
    assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE
    assert rig.calls("ok") == 0
    assert rig.metric("version_mismatch_total", role="reward") == (kind == "another version")


async def test_a_dropped_connection_is_tried_once_more(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections == 1:
            writer.transport.abort()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer()) + answer())
        await writer.drain()
        await until_closed(reader)

    server = RawServer(script)
    async with server.serving() as url:
        assert await rig.score(url) == 1.5
        await rig.upstream.close()
    assert server.connections == 2
