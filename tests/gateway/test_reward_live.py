"""Live scoring against the reward service's double on real sockets: what it scores, and what is posted instead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from gateway.live_rig import CONTEXT, SCORES, TEXTS, Rig

from acemath_core.errors import ErrorCode, InvalidRequest, ServiceError, Unavailable
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.compose import _scorer
from acemath_gateway.settings import GatewaySettings
from acemath_web.context import current_request_id
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import RawServer, nothing_left, served, until, unused_url


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(waiting_chars=100_000, patience_seconds=getattr(request, "param", 30.0))
    async with nothing_left(rig.upstream.close):
        yield rig


@pytest.fixture
def reward() -> FakeReward:
    return FakeReward(TARGET.reward)


async def test_scores_of_what_was_written(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        (session,) = reward.live.sessions
        await until(lambda: session.closed)
    assert session.opening["messages"] == CONTEXT and session.opening["model"] == TARGET.reward
    assert 10 < session.opening["deadline"] <= 20
    assert session.texts == dict(enumerate(TEXTS)) and session.pieces > 12 and reward.requests == []
    assert (rig.calls("ok"), rig.metric("upstream_seconds_count", role="reward")) == (3, 3)


async def test_the_key_and_the_name_are_shown(reward: FakeReward) -> None:
    for key, sessions in (("secret", 1), ("wrong", 0)):
        rig, guarded = Rig(key), FakeReward(TARGET.reward, key="secret")
        async with served(guarded.app) as url, rig.session(url) as session:
            rig.upstream.host_names[url] = "reward.test:8200"
            session.piece(0, "x")
            await until(lambda rig=rig, guarded=guarded: guarded.live.sessions or rig.calls("refused"))
            assert len(guarded.live.sessions) == sessions
            assert [record.headers["host"] for record in guarded.live.sessions] == ["reward.test:8200"] * sessions
        await rig.upstream.close()
    assert current_request_id() is None


async def test_a_candidate_without_pieces_or_text_is_scored_too(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(1, "")
        session.piece(2, "so ")
        texts = ["3 * 8 = 24", "", "so 24"]
        assert [await session.score(i, text) for i, text in enumerate(texts)] == [score_of(text) for text in texts]
    assert rig.calls("ok") == 3 and reward.requests == []


async def test_pieces_of_another_text_are_never_scored(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, "8 + 8")
        assert await session.score(0, TEXTS[0]) == SCORES[0]
    assert rig.fallbacks("misfit") == 1 and len(reward.requests) == 1


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_a_refused_handshake_costs_nothing_but_the_time_won(rig: Rig, reward: FakeReward, status: int) -> None:
    reward.live.handshake_status = status
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
    assert (rig.fallbacks("not_open"), reward.posted, rig.calls("ok")) == (3, 3, len(reward.requests))
    assert rig.calls("overloaded" if status == 503 else "refused") == 1 and not rig.shunned()


async def test_a_redirect_is_not_followed(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        head = f"HTTP/1.1 302 Found\r\nlocation: {url}/v1/score/live\r\ncontent-length: 0\r\n\r\n".encode()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(head)
            await writer.drain()

        async with RawServer(script).serving() as elsewhere, rig.session(elsewhere) as session:
            await until(lambda: rig.calls("refused") == 1)
            session.piece(0, "x")
    assert reward.live.sessions == []


async def test_nobody_there_is_the_posts_to_say(rig: Rig) -> None:
    for endpoints in [(unused_url(),), ()]:
        with pytest.raises(Unavailable) as caught:
            await rig.scores(*endpoints)
        assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE
    assert rig.fallbacks("not_open") == 6


@pytest.mark.parametrize("frames", [0, 4, 19])
async def test_a_service_that_dies_is_replaced_by_posts(rig: Rig, reward: FakeReward, frames: int) -> None:
    reward.live.die_after = frames
    async with served(reward.app) as url, served(FakeReward(TARGET.reward).app) as other:
        for _ in range(2):  # the turn is the other's once
            assert await rig.scores(url, other) == SCORES
    assert 1 <= rig.fallbacks("closed") <= 6 and rig.calls("broken") >= 1 and rig.shunned()


LAST_WORDS = {
    "draining": Unavailable("stopping", code=ErrorCode.DRAINING),
    "overloaded": Unavailable("full", code=ErrorCode.REWARD_OVERLOADED, retry_after=1),
    "late": Unavailable("the policy was silent", code=ErrorCode.DEADLINE_EXCEEDED),
}


@pytest.mark.parametrize("kind", LAST_WORDS)
async def test_an_error_of_the_connection_ends_it(rig: Rig, reward: FakeReward, kind: str) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        await until(lambda: bool(reward.live.sessions))
        session.piece(0, "3 ")
        frame = {"type": "error", "index": None, "code": LAST_WORDS[kind].code.value, "message": "bye"}
        reward.live.answers[1] = frame
        session.piece(1, "8 ")
        await until(lambda: rig.calls("broken" if kind == "draining" else kind) == 1)
        assert rig.shunned() == (kind == "draining")
        assert [await session.score(0, TEXTS[0]), await session.score(2, TEXTS[2])] == [SCORES[0], SCORES[2]]
    assert rig.fallbacks("closed") == 2


@pytest.mark.parametrize("code", ["invalid_request", "reward_overloaded", "internal_error", "something_new"])
async def test_an_error_of_a_candidate_is_that_candidates(rig: Rig, reward: FakeReward, code: str) -> None:
    reward.live.answers[1] = {"type": "error", "index": 1, "code": code, "message": "no", "retry_after": 1.0}
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
    assert (rig.fallbacks("refused"), len(reward.requests), rig.calls("ok")) == (1, 1, 3)


async def test_a_candidate_that_is_too_long_is_refused_for_good(rig: Rig) -> None:
    reward = FakeReward(TARGET.reward, max_tokens=20)
    async with served(reward.app) as url, rig.session(url) as session:
        with pytest.raises(InvalidRequest) as caught:
            await session.score(0, "word " * 30)
        assert await session.score(1, TEXTS[0]) == SCORES[0]
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and reward.requests == []
    assert (rig.calls("refused"), rig.calls("ok")) == (1, 1)


GARBAGE = {
    "no frame": "<html>",
    "nan": '{"type": "score", "index": 1, "score": NaN}',
    "a text": '{"type": "score", "index": 1, "score": "good"}',
    "another kind": '{"type": "applause", "index": 1}',
    "nobody's score": '{"type": "score", "index": 9, "score": 1.0}',
    "too early": '{"type": "score", "index": 1, "score": 1.0}',
    "endless": "x" * 100_000,
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_never_a_score(rig: Rig, reward: FakeReward, kind: str) -> None:
    reward.live.answers[1] = GARBAGE[kind]
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
    assert rig.fallbacks("closed") == reward.posted == 3 and rig.calls("broken") == 1


async def test_a_slow_socket_never_holds_up_the_tokens(rig: Rig, reward: FakeReward) -> None:
    reward.live.deaf = True
    texts = [letter * 16_000_000 for letter in "ab"]  # more than the sockets take
    async with served(reward.app) as url, rig.session(url) as session:
        await until(lambda: bool(reward.live.sessions))
        slowest = 0.0
        for start in range(0, len(texts[0]), 80_000):
            began = time.monotonic()
            for index, text in enumerate(texts):
                session.piece(index, text[start : start + 80_000])
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0)
        reward.score = lambda text: float(len(text)) if isinstance(text, str) else 0.0
        reward.max_tokens = 10**9
        with pytest.raises(InvalidRequest):  # the post is asked, and finds 16 MB too much
            await session.score(0, texts[0])
    assert rig.fallbacks("slow") == 1 and slowest < 10  # it never reads: who waited for it would wait for ever


@pytest.mark.parametrize("rig", [2.0], indirect=True)
async def test_a_silent_service_is_left_for_another(rig: Rig, reward: FakeReward) -> None:
    reward.live.silent = True
    other = FakeReward(TARGET.reward)
    async with served(reward.app) as url, served(other.app) as second:
        rig.upstream.replicas._turn = 1  # the silent one is first
        assert await rig.scores(url, second) == SCORES
        await until(lambda: reward.live.sessions[0].closed)
        assert rig.upstream.replicas.order([url, second])[0] == second
    assert rig.calls("timeout") == 1 and rig.fallbacks("timeout") == other.posted == 3


@pytest.mark.parametrize("rig", [0.05], indirect=True)
async def test_the_only_service_is_waited_for(rig: Rig, reward: FakeReward) -> None:
    reward.delay_seconds = 0.3
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
    assert rig.calls("ok") == 3 and reward.requests == []


async def test_leaving_closes_the_socket_and_ends_nobody(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()

    async def job(url: str) -> None:
        async with rig.session(url) as session:
            session.piece(0, "half of ")
            await session.score(1, TEXTS[1])

    async with served(reward.app) as url:
        working = asyncio.create_task(job(url))
        await until(lambda: bool(reward.live.sessions) and reward.live.sessions[0].ended == [1])
        working.cancel()
        await asyncio.wait({working})
        await until(lambda: reward.live.sessions[0].closed)
        assert (reward.live.sessions[0].ended, reward.cancelled) == ([1], 1)
    assert rig.calls("cancelled") == 1 and reward.requests == []


async def test_a_slow_handshake_does_not_hold_up_the_block(rig: Rig) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = RawServer(script)
    async with server.serving() as url:
        began = time.monotonic()
        async with rig.session(url) as session:
            session.piece(0, "x")
            await until(lambda: server.open == 1)
        assert time.monotonic() - began < 4  # the handshake has five seconds
        await until(lambda: server.open == 0)


async def test_it_is_on_until_it_is_switched_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_GATEWAY__REGISTRY_ROOT", "/nonexistent")
    assert isinstance(_scorer(GatewaySettings.checked_from_env(), rig.upstream), LiveScorer)
    monkeypatch.setenv("ACEMATH_GATEWAY__LIVE_SCORING", "false")
    assert isinstance(_scorer(GatewaySettings.checked_from_env(), rig.upstream), HttpScorer)


async def test_posts_that_fail_are_the_callers_error(rig: Rig, reward: FakeReward) -> None:
    reward.failure = ServiceError("broken")
    async with served(reward.app) as url:
        with pytest.raises(Unavailable):
            await rig.scores(url)
