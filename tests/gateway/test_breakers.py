"""The breakers of replicas: open, half open, closed; what the metrics say of them; and the budget of retries."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import ServiceError, Unavailable
from acemath_gateway.adapters import breakers
from acemath_gateway.adapters.attempts import Replicas, RetryBudget, at_fault
from acemath_gateway.adapters.breakers import Breakers
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.metrics import BreakerState, CallResult, GatewayMetrics
from acemath_gateway.ports import ReleaseTarget, Sampling
from doubles.fake_reward import FakeReward, score_of
from doubles.ports import TARGET
from doubles.servers import EVENT_STREAM, RawServer, chunked, served, until, until_closed, unused_url


@pytest.mark.parametrize(
    ("result", "left", "waited", "blamed"),
    [
        (CallResult.TIMEOUT, 0.0, 0.01, False),  # the caller's own haste
        (CallResult.TIMEOUT, 0.0, 6.0, True),
        (CallResult.TIMEOUT, 9.0, 0.01, True),  # our patience, not the caller's deadline
        (CallResult.BROKEN, 0.0, 0.01, True),
        (CallResult.UNREACHABLE, 0.0, 0.01, True),
    ],
)
def test_a_callers_haste_is_no_replicas_fault(result: CallResult, left: float, waited: float, blamed: bool) -> None:
    assert at_fault(result, Deadline.after(left), time.monotonic() - waited) is blamed


async def test_short_deadlines_open_no_breaker() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawServer(script).serving() as url:
        registry = CollectorRegistry()
        metrics = GatewayMetrics.on(registry)
        reward, policy = (Upstream(role, key=None, metrics=metrics) for role in ("reward", "policy"))
        target = replace(TARGET, reward_endpoints=(url,), policy_endpoints=(url,))
        for scorer in (HttpScorer(reward), LiveScorer(reward, HttpScorer(reward))):
            with pytest.raises(ServiceError):
                async with scorer.session(target, [{"role": "user", "content": "3?"}], Deadline.after(0.05)) as session:
                    await session.score(0, "3")
        with contextlib.suppress(ServiceError):
            async for _ in VllmPolicy(policy).generate(target, [1], Sampling(1, 0.7, 1.0, 9, 0), Deadline.after(0.05)):
                pass
        for role in ("reward", "policy"):
            opened = registry.get_sample_value("acemath_gateway_breakers", {"role": role, "state": "open"})
            assert opened == 0, role
        await reward.close()
        await policy.close()


CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Clock:
    """The breakers' time, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(breakers, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Counted:
    """An upstream and what it counts."""

    def __init__(self, role: str = "reward") -> None:
        self.registry, self.role = CollectorRegistry(), role
        self.upstream = Upstream(role, key=None, metrics=GatewayMetrics.on(self.registry))  # type: ignore[arg-type]

    def metric(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"acemath_gateway_{name}", {"role": self.role, **labels})
        assert found is not None, name
        return found

    def breakers(self) -> tuple[float, float, float]:
        """Open, half open, and how often one opened."""
        by_state = [self.metric("breakers", state=state) for state in ("open", "half_open")]
        return by_state[0], by_state[1], self.metric("breaker_opens_total")


def test_one_that_fails_opens_and_is_half_open_two_seconds_later(clock: Clock) -> None:
    counted = Counted()
    found = counted.upstream.replicas.breakers
    assert found.state("a") is CLOSED and counted.breakers() == (0, 0, 0)
    found.failed("a")
    found.failed("a")  # of calls that were under way
    assert found.state("a") is OPEN and counted.breakers() == (1, 0, 1)
    clock.now += 1.9
    assert found.state("a") is OPEN
    clock.now += 0.2
    assert found.state("a") is HALF_OPEN and counted.breakers() == (0, 1, 1)
    found.failed("a")
    assert found.state("a") is OPEN and counted.breakers() == (1, 0, 2)
    clock.now += 2.1
    found.answered("a")
    assert found.state("a") is CLOSED and counted.breakers() == (0, 0, 2)


def test_one_that_hangs_is_open_for_longer_each_time_until_a_call_went_well(clock: Clock) -> None:
    found = Breakers()

    def open_seconds() -> float:
        found.failed("a", hung=True)
        began = clock.now
        while found.state("a") is OPEN:
            clock.now += 1.0
        found.answered("a")  # it begins well, each time
        return clock.now - began

    assert [open_seconds() for _ in range(6)] == [15, 30, 60, 120, 240, 240]
    found.went_well("a")
    assert open_seconds() == 15


def test_a_short_failure_does_not_shorten_a_long_one(clock: Clock) -> None:
    found = Breakers()
    found.failed("a", hung=True)
    found.failed("a")
    clock.now += 14.0
    assert found.state("a") is OPEN


def test_a_replica_that_is_never_asked_again_is_forgotten(clock: Clock) -> None:
    found = Breakers()
    found.failed("gone")
    clock.now += 601.0
    assert found.count(HALF_OPEN) == 1
    clock.now += 2.0
    found.failed("other")
    assert found.count(HALF_OPEN) == 0 and found.state("gone") is CLOSED


def test_while_open_it_is_last_and_half_open_it_has_one_call_at_a_time(clock: Clock) -> None:
    replicas = Replicas()
    replicas.shun("bad")
    assert {replicas.order(["bad", "good"])[0] for _ in range(4)} == {"good"}
    clock.now += 2.1
    with replicas.working("good", 3):
        assert {replicas.order(["bad", "good"])[0] for _ in range(4)} == {"bad"}
        with replicas.working("bad", 1):
            assert {replicas.order(["bad", "good"])[0] for _ in range(4)} == {"good"}
            replicas.answered("bad")
            assert {replicas.order(["bad", "good"])[0] for _ in range(4)} == {"bad"}  # it has the smaller load


@pytest.mark.parametrize("seconds", [0.0, 2.1])
def test_a_replica_that_is_alone_is_asked_whatever_its_state(clock: Clock, seconds: float) -> None:
    replicas = Replicas()
    replicas.shun("only")
    clock.now += seconds
    with replicas.working("only", 1):
        assert replicas.order(["only"]) == ["only"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["fail", "hang", "answer", "well", "wait", "call"]))))
def test_nobody_goes_where_a_breaker_is_open_while_another_is_closed(steps: list[tuple[str, str]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as calls:
        patch.setattr(breakers, "time", SimpleNamespace(monotonic=clock.monotonic))
        replicas = Replicas()
        for endpoint, step in steps:
            match step:
                case "fail" | "hang":
                    replicas.shun(endpoint, hung=step == "hang")
                case "answer":
                    replicas.answered(endpoint)
                case "well":
                    replicas.well(endpoint)
                case "wait":
                    clock.now += 2.5
                case _:
                    first, *others = replicas.order(["a", "b", "c"])
                    assert sorted([first, *others]) == ["a", "b", "c"]
                    states = {one: replicas.breakers.state(one) for one in "abc"}
                    if CLOSED in states.values():
                        assert states[first] is not OPEN
                        assert states[first] is CLOSED or not replicas._load[first]
                    calls.enter_context(replicas.working(first, 1))


async def test_one_request_at_a_time_tries_a_service_that_had_failed(clock: Clock) -> None:
    counted = Counted()
    scorer = HttpScorer(counted.upstream)
    bad, good = FakeReward(TARGET.reward), FakeReward(TARGET.reward)
    bad.failure = ServiceError("this batch failed")
    async with served(bad.app) as one, served(good.app) as two:
        target = ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (), (one, two))

        async def score() -> float:
            async with scorer.session(target, [{"role": "user", "content": "?"}], Deadline.after(20)) as session:
                return await session.score(0, "x")

        assert [await score() for _ in range(6)] == [score_of("x")] * 6
        assert len(bad.requests) == 1 and counted.breakers() == (1, 0, 1)
        bad.failure, bad.gate = None, asyncio.Event()
        clock.now += 2.1
        asking = [asyncio.create_task(score()) for _ in range(8)]
        await until(lambda: sum(task.done() for task in asking) == 7 and len(bad.requests) > 1)
        assert len(bad.requests) == 2 and counted.breakers() == (0, 1, 1)  # one waits for it, seven went elsewhere
        bad.gate.set()
        assert await asyncio.gather(*asking) == [score_of("x")] * 8
        assert counted.breakers() == (0, 0, 1)
    await counted.upstream.close()


async def test_a_policy_server_is_trusted_again_with_its_first_token(clock: Clock) -> None:
    counted = Counted("policy")
    begun = chunked(
        b'data: {"model": "%b", "choices": [{"index": 0, "text": "3", "token_ids": [1], "finish_reason": null}]}\n\n'
        % TARGET.policy.encode()
    )

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + begun)
        await until_closed(reader)

    async with RawServer(script).serving() as url:
        counted.upstream.replicas.shun(url)
        clock.now += 2.1
        assert counted.breakers() == (0, 1, 1)
        target = ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (url,), ())
        events = VllmPolicy(counted.upstream).generate(target, [1], Sampling(1, 0.7, 1.0, 9, 0), Deadline.after(20))
        async with contextlib.aclosing(events):
            await anext(events)
            assert counted.breakers() == (0, 0, 1)
    await counted.upstream.close()


async def test_a_retry_that_the_budget_refuses_is_counted() -> None:
    counted = Counted()
    counted.upstream.budget = RetryBudget(share=0.0, most=2.0)
    scorer = HttpScorer(counted.upstream)
    target = ReleaseTarget(TARGET.release, 1, TARGET.policy, TARGET.reward, (), (unused_url(), unused_url()))
    for _ in range(5):
        async with scorer.session(target, [{"role": "user", "content": "?"}], Deadline.after(20)) as session:
            with pytest.raises(Unavailable):
                await session.score(0, "x")
    assert (counted.metric("upstream_retries_total"), counted.metric("retries_refused_total")) == (2, 3)
    await counted.upstream.close()
