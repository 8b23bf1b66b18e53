"""Partial scores of whatever claims to be a `ScorerPort`: those of the whole text so far, or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import ReleaseTarget, ScorerPort, ScoringSession
from doubles.fake_reward import FakeReward
from doubles.ports import TARGET, ScriptedScorer
from doubles.servers import served

CONTEXT: list[ChatMessage] = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many?"}]
TEXTS = [
    "3 + 4 = 7, so Tom has \\boxed{7} apples.",
    "He has 3, and 4 more come, which is " + "7 or " * 40 + "\\boxed{8}",
]
CUTS = (3, 17, 29)
REAL = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Subject:
    port: ScorerPort
    target: ReleaseTarget

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ScoringSession]:
        async with self.port.session(self.target, CONTEXT, Deadline.after(60)) as session:
            yield session

    async def whole(self, text: str) -> float:
        async with self.session() as session:
            return await session.score(0, text)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream("reward", key=None, metrics=GatewayMetrics.on(CollectorRegistry()))
    yield upstream
    await upstream.close()


@pytest.fixture(params=["double", "live to double", pytest.param("live to service", marks=REAL)])
async def subject(request: pytest.FixtureRequest, upstream: Upstream) -> AsyncIterator[Subject]:
    if request.param == "double":
        yield Subject(ScriptedScorer(), TARGET)
        return
    if request.param == "live to service":
        real = request.getfixturevalue("real_reward")
        target = replace(TARGET, reward=real.reward, reward_endpoints=(real.reward_url,))
        yield Subject(LiveScorer(upstream, HttpScorer(upstream)), target)
        return
    async with served(FakeReward(TARGET.reward).app) as url:
        yield Subject(LiveScorer(upstream, HttpScorer(upstream)), replace(TARGET, reward_endpoints=(url,)))


async def test_a_partial_score_is_that_of_the_text_so_far(subject: Subject) -> None:
    expected = [[await subject.whole(text[:cut]) for cut in (*CUTS, len(text))] for text in TEXTS]
    async with subject.session() as session:
        found: list[list[float | None]] = [[] for _ in TEXTS]
        for start, end in zip((0, *CUTS), CUTS, strict=False):
            for index, text in enumerate(TEXTS):
                session.piece(index, text[start:end])
            for partial, score in zip(
                found, await asyncio.gather(*(session.peek(i) for i in range(len(TEXTS)))), strict=True
            ):
                partial.append(score)
        for index, text in enumerate(TEXTS):
            found[index].append(await session.score(index, text))
    assert found == expected


async def test_of_what_has_not_begun_or_is_complete_there_is_none(subject: Subject) -> None:
    async with subject.session() as session:
        assert await session.peek(0) is None
        session.piece(0, TEXTS[0][:9])
        await session.score(0, TEXTS[0])
        assert await session.peek(0) is None


async def test_a_peek_that_nobody_waits_for_any_more_costs_no_score(subject: Subject) -> None:
    whole = await subject.whole(TEXTS[0])
    async with subject.session() as session:
        session.piece(0, TEXTS[0][:9])
        peek = asyncio.create_task(session.peek(0))
        await asyncio.sleep(0)
        peek.cancel()
        await asyncio.wait({peek})
        session.piece(0, TEXTS[0][9:])
        assert await session.score(0, TEXTS[0]) == whole


async def test_a_candidate_that_is_dropped_has_no_partial_score_and_the_others_have_theirs(subject: Subject) -> None:
    whole = await subject.whole(TEXTS[1])
    async with subject.session() as session:
        for index, text in enumerate(TEXTS):
            session.piece(index, text[:9])
        assert None not in await asyncio.gather(session.peek(0), session.peek(1))
        for index in (0, 0, 2):  # again, and one that never began
            session.drop(index)
        assert await session.peek(0) is None
        session.piece(1, TEXTS[1][9:])
        assert await session.score(1, TEXTS[1]) == whole


async def test_posts_know_no_partial_scores(upstream: Upstream) -> None:
    async with HttpScorer(upstream).session(TARGET, CONTEXT, Deadline.after(60)) as session:
        session.piece(0, TEXTS[0])
        assert await session.peek(0) is None
        session.drop(0)
