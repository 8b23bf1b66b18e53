"""Partial scores on the live connection, against the reward service's double: what is asked, and what is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway.test_reward_live import SCORES, TEXTS, Rig

from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import nothing_left, served, until, unused_url


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(waiting_chars=10_000)
    async with nothing_left(rig.upstream.close):
        yield rig


@pytest.fixture
def reward() -> FakeReward:
    return FakeReward(TARGET.reward)


async def test_what_was_handed_over_is_scored_and_a_score_after_it_is_the_same(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        for index, text in enumerate(TEXTS):
            session.piece(index, text[:9])
        assert await asyncio.gather(*map(session.peek, range(3))) == [score_of(text[:9]) for text in TEXTS]
        assert await asyncio.gather(*(session.score(i, text) for i, text in enumerate(TEXTS))) == SCORES
        (record,) = reward.live.sessions
    assert record.peeked == {index: text[:9] for index, text in enumerate(TEXTS)}
    assert rig.calls("ok") == 3 and reward.requests == []


async def test_one_is_asked_for_at_a_time(rig: Rig, reward: FakeReward) -> None:
    reward.live.blind = True
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, TEXTS[0][:9])
        first = asyncio.create_task(session.peek(0))
        await until(lambda: bool(reward.live.sessions) and bool(reward.live.sessions[0].peeked))
        assert await session.peek(0) is None
        first.cancel()
        await asyncio.wait({first})
        assert await session.peek(0) is None  # the service still owes the answer to the first
        assert await session.score(0, TEXTS[0]) == SCORES[0]
    assert reward.requests == [] and rig.calls("broken") == 0


async def test_a_peek_is_over_when_the_candidate_has_its_score(rig: Rig, reward: FakeReward) -> None:
    reward.live.blind = True
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, TEXTS[0][:9])
        peek = asyncio.create_task(session.peek(0))
        await until(lambda: bool(reward.live.sessions) and bool(reward.live.sessions[0].peeked))
        assert await session.score(0, TEXTS[0]) == SCORES[0]
        assert await peek is None


@pytest.mark.parametrize("end", ["cut", "refused", "away", "full"])
async def test_without_a_connection_there_are_none_and_the_posts_go_on(rig: Rig, reward: FakeReward, end: str) -> None:
    if end == "cut":
        reward.live.die_after = 1
    elif end == "refused":
        reward.live.handshake_status = 503
    async with served(reward.app) as url, rig.session(unused_url() if end == "away" else url) as session:
        session.piece(0, "x" * 20_000 if end == "full" else TEXTS[0][:9])
        assert await session.peek(0) is None
        if end in ("cut", "refused"):
            assert await session.score(0, TEXTS[0]) == SCORES[0]


GARBAGE = {
    "nobody asked": {"type": "partial", "index": 1, "score": 1.0, "tokens": 3},
    "nobody's": {"type": "partial", "index": 9, "score": 1.0, "tokens": 3},
    "a text": {"type": "partial", "index": 1, "score": "good", "tokens": 3},
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_no_partial_score_and_ends_the_connection(rig: Rig, reward: FakeReward, kind: str) -> None:
    reward.live.answers[1] = GARBAGE[kind]
    reward.live.blind = True
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, TEXTS[0])
        session.piece(1, TEXTS[1])
        assert await session.peek(0) is None
        assert await asyncio.gather(session.score(0, TEXTS[0]), session.score(1, TEXTS[1])) == SCORES[:2]
    assert rig.calls("broken") == 1 and rig.fallbacks("closed") == 2


async def test_a_partial_score_that_comes_too_late_is_nobodys_and_no_fault(rig: Rig, reward: FakeReward) -> None:
    reward.live.answers[1] = {"type": "partial", "index": 0, "score": 1.0, "tokens": 3}
    reward.live.blind = True
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, TEXTS[0][:9])
        peek = asyncio.create_task(session.peek(0))
        await until(lambda: bool(reward.live.sessions) and bool(reward.live.sessions[0].peeked))
        peek.cancel()
        await asyncio.wait({peek})
        session.piece(1, TEXTS[1])  # which makes the double send it now
        session.piece(2, TEXTS[2])
        assert await session.score(0, TEXTS[0]) == SCORES[0]
        assert await session.score(2, TEXTS[2]) == SCORES[2]
    assert rig.calls("broken") == 0


async def test_the_service_is_told_who_is_not_wanted_any_more(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        for index, text in enumerate(TEXTS):
            session.piece(index, text[:9])
        session.drop(0)
        session.piece(0, TEXTS[0][9:])
        assert await session.peek(0) is None
        assert await asyncio.gather(*(session.score(i, TEXTS[i]) for i in (1, 2))) == SCORES[1:]
        (record,) = reward.live.sessions
    assert (record.dropped, record.texts[0]) == ([0], TEXTS[0][:9])
    assert reward.requests == [] and rig.calls("broken") == 0


async def test_who_waits_for_a_partial_score_of_what_is_dropped_gets_none(rig: Rig, reward: FakeReward) -> None:
    reward.live.blind = True
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, TEXTS[0][:9])
        peek = asyncio.create_task(session.peek(0))
        await until(lambda: bool(reward.live.sessions) and bool(reward.live.sessions[0].peeked))
        session.drop(0)
        assert await peek is None


async def test_what_the_service_never_heard_of_is_not_dropped_there(rig: Rig, reward: FakeReward) -> None:
    async with served(reward.app) as url, rig.session(url) as session:
        session.piece(0, "x" * 20_000)  # finds no room
        session.drop(0)
        session.drop(1)
        assert await session.score(2, TEXTS[2]) == SCORES[2]
    assert reward.live.sessions[0].dropped == [] and rig.calls("broken") == 0
