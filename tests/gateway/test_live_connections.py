"""Live connections serve one request after another: what is used again, what is not, and what a dead one costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway.live_rig import SCORES, TEXTS, Rig, written

from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.adapters import live_connections
from acemath_gateway.adapters.live_connections import Connection
from acemath_gateway.trace_context import carrying
from acemath_web.context import request_named
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import nothing_left, served, until


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(waiting_chars=100_000, patience_seconds=30.0)
    async with nothing_left(rig.upstream.close):
        yield rig


@pytest.fixture
def reward() -> FakeReward:
    return FakeReward(TARGET.reward)


def sockets(reward: FakeReward) -> list[str]:
    """The handshake of each job's connection."""
    return [record.headers["sec-websocket-key"] for record in reward.live.sessions]


def resting(rig: Rig) -> set[Connection]:
    return {one for own in rig.scorer._connections._resting.values() for one in own}


async def at_rest(rig: Rig, count: int = 1) -> None:
    await until(lambda: len(resting(rig)) == count)


async def test_requests_in_turn_share_a_connection(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        for name in ("first", "second", "third"):
            with request_named(name):
                assert await rig.scores(url) == SCORES
            await at_rest(rig)
    assert len(set(sockets(reward))) == 1 and reward.requests == []
    assert [record.opening["request_id"] for record in reward.live.sessions] == ["first", "second", "third"]
    assert all(record.closed and record.texts == dict(enumerate(TEXTS)) for record in reward.live.sessions)
    assert rig.calls("ok") == 9 and rig.calls("broken") == 0


async def test_requests_at_once_have_one_each_and_what_rests_is_used_first(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await asyncio.gather(*(rig.scores(url) for _ in range(3))) == [SCORES] * 3
        await at_rest(rig, 3)
        assert await asyncio.gather(*(rig.scores(url) for _ in range(4))) == [SCORES] * 4
    assert len(set(sockets(reward)[:3])) == 3 and len(set(sockets(reward))) == 4


async def test_connections_are_of_one_replica(rig: Rig, reward: FakeReward) -> None:
    other = FakeReward(TARGET.reward)
    async with served(reward.app) as first, served(other.app) as second:
        for url in (first, second, first, second):
            assert await rig.scores(url) == SCORES
            await until(lambda: rig.scorer._connections._all == resting(rig))
    assert [len(set(sockets(one))) for one in (reward, other)] == [1, 1]


async def test_a_request_that_is_left_is_freed_and_its_scores_reach_nobody(rig: Rig, reward: FakeReward) -> None:
    reward.gate = asyncio.Event()
    async with served(reward.app) as url:
        async with rig.session(url) as session:
            waiting = asyncio.create_task(session.score(0, TEXTS[0]))
            await until(lambda: bool(reward.live.sessions) and reward.live.sessions[0].ended == [0])
            waiting.cancel()
            await asyncio.wait({waiting})
        await at_rest(rig)
        assert reward.live.sessions[0].closed and reward.cancelled == 1
        reward.gate.set()
        async with rig.session(url) as session:
            session.piece(0, "another ")
            assert await session.score(0, "another text") == score_of("another text")
    assert len(set(sockets(reward))) == 1 and reward.requests == []


async def test_pieces_that_wait_when_a_request_is_left_are_not_the_next_ones(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        async with rig.session(url) as session:
            session.piece(7, "left before it was sent, so the service never hears of this request")
        async with rig.session(url) as session:
            session.piece(7, "so ")
            await until(lambda: len(reward.live.sessions) == 2)
            session.piece(8, "left before this was sent")
        await at_rest(rig)
        assert await rig.scores(url) == SCORES
    assert [record.texts for record in reward.live.sessions[1:]] == [{7: "so "}, dict(enumerate(TEXTS))]
    assert len(set(sockets(reward))) == 1 and rig.calls("broken") == 0


async def test_a_connection_that_the_service_closed_is_not_used(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.hang_up.set()
        await at_rest(rig, 0)
        reward.live.hang_up.clear()
        assert await rig.scores(url) == SCORES
    assert len(set(sockets(reward))) == 2 and rig.calls("broken") == 0 and reward.requests == []


async def test_one_that_dies_as_it_is_used_again_costs_nothing(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.die_at_second = True
        assert await rig.scores(url) == SCORES
    assert len(set(sockets(reward))) == 2 and reward.live.sessions[-1].texts == dict(enumerate(TEXTS))
    assert not rig.shunned() and reward.requests == []
    assert (rig.calls("ok"), rig.calls("broken")) == (6, 0)


async def test_what_the_dead_one_was_told_is_said_again(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.die_at_second = True
        async with rig.session(url) as session:  # all of it before anything can be heard
            for piece in ("3 times ", "8 is "):
                session.piece(0, piece)
            session.piece(1, "given up")
            session.drop(1)
            peeked = asyncio.create_task(session.peek(0))
            assert await session.score(2, "") == score_of("")
            assert await peeked == score_of("3 times 8 is ")
            assert await session.score(0, TEXTS[0]) == SCORES[0]
        (record,) = reward.live.sessions[1:]
    assert record.texts == {0: TEXTS[0], 2: ""} and record.peeked == {0: "3 times 8 is "} and record.dropped == []


async def test_it_is_replaced_once(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.die_at_second, reward.live.die_after = True, 1
        assert await rig.scores(url) == SCORES
    assert rig.fallbacks("closed") == 3 and rig.calls("broken") == 1


async def test_a_service_that_never_frees_a_request_loses_the_connection(
    rig: Rig, reward: FakeReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_connections, "_DONE_SECONDS", 0.05)
    reward.live.never_done = True
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await until(lambda: not rig.scorer._connections._all)
        assert await rig.scores(url) == SCORES
    assert len(set(sockets(reward))) == 2 and rig.calls("broken") == 0 and not rig.shunned()


@pytest.mark.parametrize(("limit", "value"), [("_REST_SECONDS", 0.05), ("_AGE_SECONDS", 0.0), ("_MOST_RESTING", 0)])
async def test_none_is_kept_too_long(
    rig: Rig, reward: FakeReward, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(live_connections, limit, value)
    async with served(reward.app) as url:
        for _ in range(2):
            assert await rig.scores(url) == SCORES
            await until(lambda: not rig.scorer._connections._all)
    assert len(set(sockets(reward))) == 2 and rig.scorer._connections._resting == {}


async def test_one_that_is_being_closed_is_not_taken(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        (closing,) = resting(rig)
        closing.abort()  # its task hears of it in the loop's next turn
        async with rig.session(url) as session:
            assert await session.score(0, TEXTS[0]) == SCORES[0]
    assert len(set(sockets(reward))) == 2 and reward.requests == []


async def test_an_error_is_an_answer_and_no_sign_of_a_dead_connection(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.failure = Unavailable("full", code=ErrorCode.REWARD_OVERLOADED, retry_after=0.1)
        async with rig.session(url):
            await until(lambda: rig.calls("overloaded") == 1)
    assert len(reward.live.sessions) == 2, "it was not asked again"


async def test_a_replacement_without_room_for_what_was_said_is_not_opened(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.die_at_second = True
        async with rig.session(url) as session:
            for _ in range(12):
                session.piece(0, "a" * 9_000)  # sent one after the other, so that each finds room
                await asyncio.sleep(0)
            await until(lambda: not rig.scorer._connections._all)
            assert await session.score(1, TEXTS[1]) == SCORES[1]
    assert len(reward.live.sessions) == 1 and rig.fallbacks("slow") == 1


async def test_one_that_is_left_before_it_began_is_forgotten(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        for _ in range(3):
            async with rig.session(url):
                pass
        await until(lambda: not rig.scorer._connections._all)
    assert reward.live.sessions == []


async def test_a_replacement_is_the_new_requests(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        with request_named("first"):
            assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.die_at_second = True
        with request_named("second"):
            assert await rig.scores(url) == SCORES
    shown = [(one.headers["x-request-id"], one.opening["request_id"]) for one in reward.live.sessions]
    assert shown == [("first", "first"), ("second", "second")]


async def test_garbage_between_two_requests_ends_the_connection(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        reward.live.hang_up_with = '{"type": "score", "index": 0, "score": 99.0}'
        reward.live.hang_up.set()
        await until(lambda: not rig.scorer._connections._all)
        reward.live.hang_up.clear()
        assert await rig.scores(url) == SCORES
    assert len(set(sockets(reward))) == 2 and rig.calls("ok") == 6


async def test_a_traced_request_shows_its_trace_in_a_handshake_of_its_own(rig: Rig, reward: FakeReward) -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        with carrying(trace):
            assert await rig.scores(url) == SCORES
            await until(lambda: rig.scorer._connections._all == resting(rig))
        assert await rig.scores(url) == SCORES
    first, traced, last = sockets(reward)
    assert first == last != traced, "nobody else shows that trace"
    assert [one.headers.get("traceparent") for one in reward.live.sessions] == [None, trace["traceparent"], None]


async def test_closing_closes_what_rests_and_what_is_used(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url:
        assert await rig.scores(url) == SCORES
        await at_rest(rig)
        async with rig.session(url) as first, rig.session(url) as second:
            await asyncio.gather(written(first), written(second))
            await rig.upstream.close()
            assert rig.scorer._connections._all == set()
