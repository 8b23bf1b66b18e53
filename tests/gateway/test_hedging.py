"""A second call beside one that takes long: off unless it is asked for, never without end, and never a second score."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, ServiceError, Unavailable
from acemath_gateway.adapters.attempts import RetryBudget
from acemath_gateway.adapters.hedging import hedged
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.compose import _scorer
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.settings import GatewaySettings
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import served, settled, until

TEXTS = ("3 * 8 = 24", "so 24")
SCORES = [score_of(text) for text in TEXTS]


class Rig:
    """Two reward services, of which the first is asked first."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.upstream = Upstream("reward", key=None, metrics=GatewayMetrics.on(self.registry))
        self.slow, self.other = FakeReward(TARGET.reward, max_tokens=30), FakeReward(TARGET.reward, max_tokens=30)
        self.slow.gate = asyncio.Event()
        self.endpoints: tuple[str, ...] = ()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with served(self.slow.app) as one, served(self.other.app) as two:
            self.endpoints = (one, two)
            yield
            await self.upstream.close()

    async def scores(self, hedge_seconds: float | None, *texts: str, seconds: float = 20.0) -> list[float]:
        scorer = HttpScorer(self.upstream, patience_seconds=10.0, hedge_seconds=hedge_seconds)
        self.upstream.replicas._turn = 1  # the slow one is first
        target = ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (), self.endpoints)
        async with scorer.session(target, [{"role": "user", "content": "?"}], Deadline.after(seconds)) as session:
            return list(await asyncio.gather(*(session.score(i, text) for i, text in enumerate(texts or TEXTS))))

    def metric(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"acemath_gateway_{name}", {"role": "reward", **labels})
        assert found is not None
        return found


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    async with rig.serving():
        yield rig
    await settled()


async def test_the_first_answer_counts_and_the_other_call_ends(rig: Rig) -> None:
    assert await rig.scores(0.05) == SCORES
    await until(lambda: rig.slow.cancelled == 1)
    assert [rig.metric("upstream_calls_total", result=one) for one in ("ok", "cancelled")] == [1, 1]
    assert (rig.metric("hedges_total"), rig.metric("upstream_retries_total")) == (1, 0)
    assert not any(rig.upstream.replicas._load.values())


async def test_off_is_off(rig: Rig) -> None:
    asking = asyncio.create_task(rig.scores(None))
    await until(lambda: len(rig.slow.requests) == 1)
    assert asking in (await asyncio.wait({asking}, timeout=0.2))[1] and rig.other.requests == []
    assert rig.slow.gate is not None
    rig.slow.gate.set()
    assert await asking == SCORES
    assert (rig.metric("hedges_total"), rig.metric("upstream_calls_total", result="ok")) == (0, 1)
    scorer = _scorer(GatewaySettings(registry_root="/nonexistent", live_scoring=False), rig.upstream)  # type: ignore[arg-type]
    assert isinstance(scorer, HttpScorer) and scorer._hedge is None


async def test_a_fast_service_is_asked_alone(rig: Rig) -> None:
    rig.slow.gate = None
    assert await rig.scores(5.0) == SCORES
    assert rig.metric("hedges_total") == 0 and rig.other.requests == []


async def test_what_the_slow_one_gives_meanwhile_counts_too(rig: Rig) -> None:
    rig.other.gate = asyncio.Event()
    asking = asyncio.create_task(rig.scores(0.05))
    await until(lambda: len(rig.other.requests) == 1)
    assert rig.slow.gate is not None
    rig.slow.gate.set()
    assert await asking == SCORES
    await until(lambda: rig.other.cancelled == 1)


async def test_the_retry_budget_bounds_it(rig: Rig) -> None:
    rig.upstream.budget = RetryBudget(share=0.0, most=0.0)
    asking = asyncio.create_task(rig.scores(0.02))
    await until(lambda: rig.metric("retries_refused_total") == 1)
    assert rig.slow.gate is not None
    rig.slow.gate.set()
    assert await asking == SCORES and rig.other.requests == []


async def test_a_service_whose_breaker_is_open_is_no_second_one(rig: Rig) -> None:
    rig.upstream.replicas.shun(rig.endpoints[1], hung=True)
    asking = asyncio.create_task(rig.scores(0.02))
    await until(lambda: len(rig.slow.requests) == 1)
    assert asking in (await asyncio.wait({asking}, timeout=0.1))[1] and rig.other.requests == []
    assert rig.slow.gate is not None
    rig.slow.gate.set()
    assert await asking == SCORES


async def test_a_second_one_that_fails_leaves_the_first_to_answer(rig: Rig) -> None:
    rig.other.failure = ServiceError("this batch failed")
    asking = asyncio.create_task(rig.scores(0.02))
    await until(lambda: rig.metric("upstream_calls_total", result="broken") == 1)
    assert rig.slow.gate is not None
    rig.slow.gate.set()
    assert await asking == SCORES


async def test_both_failing_is_the_failure_it_would_be_without(rig: Rig) -> None:
    rig.other.failure = ServiceError("this batch failed")
    rig.slow.delay_seconds, rig.slow.gate = 0.1, None
    rig.slow.failing_candidates = ["x"]
    with pytest.raises(Unavailable):
        await rig.scores(0.02, "x")


async def test_a_refusal_of_either_is_final(rig: Rig) -> None:
    with pytest.raises(InvalidRequest):
        await rig.scores(0.02, "word " * 60)
    assert rig.metric("upstream_calls_total", result="refused") >= 1


async def test_a_job_that_ends_takes_both_calls_along(rig: Rig) -> None:
    rig.other.gate = asyncio.Event()
    asking = asyncio.create_task(rig.scores(0.02))
    await until(lambda: len(rig.other.requests) == 1)
    asking.cancel()
    await asyncio.wait({asking})
    await until(lambda: rig.slow.cancelled == rig.other.cancelled == 1)
    assert rig.metric("upstream_calls_total", result="cancelled") == 2


async def test_a_failure_before_the_time_is_raised_at_once() -> None:
    async def fails() -> None:
        raise ServiceError("no")

    with pytest.raises(ServiceError):
        await hedged(fails(), lambda: pytest.fail("nobody was to be asked"), 5.0)
