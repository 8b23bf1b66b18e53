"""The solver on the real adapters and real sockets; only what is behind the sockets is a double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gateway.solver_bench import a_job
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, Unavailable
from acemath_core.wire import DegradedReason, Selection, StopReason
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.jobs import Outcome, SolveJob
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.solver import Solver
from doubles.fake_reward import FakeReward
from doubles.fake_vllm_server import FakeServer, Tokens
from doubles.ports import TARGET, BytePrompts, FixedRelease, TextJudge
from doubles.servers import no_task_left, served, until, unused_url


@dataclass
class Stack:
    """A solver, a vLLM server's double and a reward service's double."""

    solver: Solver
    vllm: FakeServer
    reward: FakeReward
    releases: FixedRelease
    control: Path
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0

    def asked(self) -> int:
        """Candidates that the reward service was asked for, either way."""
        return self.reward.posted + sum(len(session.ended) for session in self.reward.live.sessions)

    def faults(self, **faults: Any) -> None:
        self.control.write_text(json.dumps(faults))

    async def solve(self, **changes: Any) -> Outcome:
        async with aclosing(self.solver.run(a_longer_job(**changes))) as run:
            events = [event async for event in run]
        assert isinstance(events[-1], Outcome)
        return events[-1]


def a_longer_job(**changes: Any) -> SolveJob:
    turns = ({"role": "user", "content": "What is 3 * 8 - 5?"},)
    return a_job(**{"turns": turns, "max_tokens": 512, "seconds": 30.0, **changes})


@asynccontextmanager
async def stack_of(tmp_path: Path, *, live: bool = False, reward_up: bool = True) -> AsyncIterator[Stack]:
    control = tmp_path / "control.json"
    vllm = FakeServer(TARGET.policy, TARGET.policy, 2048, Tokens.of(Path("/nonexistent")), control=control)
    reward = FakeReward(TARGET.reward)
    registry = CollectorRegistry()
    metrics = GatewayMetrics.on(registry)
    policy_upstream = Upstream("policy", key=None, metrics=metrics)
    reward_upstream = Upstream("reward", key=None, metrics=metrics)
    async with served(vllm.app()) as vllm_url, served(reward.app) as reward_url:
        endpoints = {"policy_endpoints": (vllm_url,), "reward_endpoints": (reward_url if reward_up else unused_url(),)}
        releases = FixedRelease(replace(TARGET, **endpoints))
        posts = HttpScorer(reward_upstream)
        solver = Solver(
            policy=VllmPolicy(policy_upstream),
            scorer=LiveScorer(reward_upstream, posts) if live else posts,
            judge=TextJudge(),
            releases=releases,
            encoders=BytePrompts(),
            metrics=metrics,
        )
        yield Stack(solver, vllm, reward, releases, control, registry)
        await policy_upstream.close()
        await reward_upstream.close()


@pytest.fixture(params=["posts", "live"])
async def stack(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    async with stack_of(tmp_path, live=request.param == "live") as made:
        yield made
    await no_task_left()


async def test_a_solve(stack: Stack) -> None:
    outcome = await stack.solve()
    assert (outcome.n_generated, outcome.n_scored, outcome.degraded_reason) == (6, 6, None)
    assert outcome.best.score == max(c.score for c in outcome.candidates if c.score is not None)
    assert {c.answer for c in outcome.candidates} == {"19", "6"}
    asked = [request.model for request in stack.reward.requests]
    asked += [session.opening["model"] for session in stack.reward.live.sessions]
    assert set(asked) == {TARGET.reward}
    assert (await stack.solve(selection=Selection.MAJORITY)).best.answer == "19"


async def test_a_stream_reset_in_the_middle_keeps_what_was_scored(stack: Stack) -> None:
    stack.faults(script=["\\boxed{1}", "x" * 60 + "\\boxed{2}"], break_after=30)
    outcome = await stack.solve()
    assert [c.index for c in outcome.candidates] == [0, 2, 4]
    assert (outcome.stop_reason, outcome.degraded_reason) == (
        StopReason.POLICY_FAILED,
        DegradedReason.FEWER_CANDIDATES,
    )


async def test_live_scoring_gives_the_same_answer(tmp_path: Path) -> None:
    outcomes = []
    for live in (False, True):
        async with stack_of(tmp_path, live=live) as stack:
            outcomes.append([await stack.solve(selection=one) for one in Selection])
            posted, sessions = stack.reward.posted, stack.reward.live.sessions
            runs = len(Selection)
            expected = (0, [6] * runs) if live else (6 * runs, [])
            assert (posted, [len(session.ended) for session in sessions]) == expected
            calls = 6 * runs if live else len(stack.reward.requests)
            assert stack.metric("upstream_calls_total", role="reward", result="ok") == calls
            assert all(session.pieces > 6 for session in sessions)
    for posted, live in zip(*outcomes, strict=True):
        assert (live.candidates, live.best) == (posted.candidates, posted.best)


@pytest.mark.parametrize("live", [False, True])
async def test_waves_make_the_candidates_of_one_call(tmp_path: Path, live: bool) -> None:
    async with stack_of(tmp_path, live=live) as stack:
        stack.faults(script=[f"\\boxed{{{i}}}" for i in range(7)])
        whole = await stack.solve(n=16, seed=5)
        waves = await stack.solve(n=16, seed=5, adaptive=True)
        assert [c.answer for c in whole.candidates] == [str((5 + i) % 7) for i in range(16)]
    assert (waves.candidates, waves.stop_reason) == (whole.candidates, StopReason.COMPLETE)


WORTHS = [f"worth {i} {'so ' * 40}\\boxed{{{i}}}" for i in range(8)]


def worth(candidate: Any) -> float:
    """What a candidate is worth is in its second word."""
    return float(str(candidate).split()[1])


async def test_hopeless_candidates_end_at_the_server_and_the_winner_is_the_same(tmp_path: Path) -> None:
    outcomes = []
    async with stack_of(tmp_path, live=True) as stack:
        stack.faults(script=WORTHS, token_seconds=0.004)
        stack.reward.score = worth
        for early_reject in (False, True):
            outcomes.append(await stack.solve(n=8, early_reject=early_reject))
        await until(lambda: stack.vllm.running == 0)
        assert stack.vllm.finished == {"stop": 8 + 4, "length": 0, "abort": 4}
        assert [sorted(record.peeked) for record in stack.reward.live.sessions] == [[], list(range(8))]
        assert [sorted(record.ended) for record in stack.reward.live.sessions] == [list(range(8)), [4, 5, 6, 7]]
        assert [sorted(record.dropped) for record in stack.reward.live.sessions] == [[], [0, 1, 2, 3]]
        assert stack.metric("upstream_calls_total", role="policy", result="cancelled") == 4
        assert stack.reward.posted == 0
    whole, rejected = outcomes
    assert (rejected.best, rejected.n_rejected, rejected.n_generated) == (whole.best, 4, 4)
    assert rejected.completion_tokens < whole.completion_tokens - 4 * 40


async def test_a_connection_that_is_lost_stops_nobody(tmp_path: Path) -> None:
    async with stack_of(tmp_path, live=True) as stack:
        stack.faults(script=WORTHS, token_seconds=0.002)
        stack.reward.score = worth
        stack.reward.live.die_after = 6
        outcome = await stack.solve(n=8, early_reject=True)
    assert (outcome.n_generated, outcome.n_scored, outcome.n_rejected, outcome.best.answer) == (8, 8, 0, "7")


@pytest.mark.parametrize("stage", ["generating", "peeking"])
async def test_a_closed_run_of_many_calls_leaves_nothing(tmp_path: Path, stage: str) -> None:
    async with stack_of(tmp_path, live=True) as stack:
        stack.faults(script=WORTHS, token_seconds=0.01)
        stack.reward.score = worth
        stack.reward.live.blind = True

        async def read() -> None:
            async with aclosing(stack.solver.run(a_longer_job(n=8, early_reject=True))) as run:
                async for _ in run:
                    pass

        reading = asyncio.create_task(read())
        sessions = stack.reward.live.sessions
        await until(lambda: bool(sessions) and (bool(sessions[0].peeked) if stage == "peeking" else True))
        reading.cancel()
        await asyncio.wait({reading})
        assert stack.releases.held == 0
        await until(lambda: stack.vllm.running == 0 and sessions[0].closed)
    await no_task_left()


@pytest.mark.parametrize("live", [False, True])
async def test_a_dead_scorer_is_told_before_generation_is_over(tmp_path: Path, live: bool) -> None:
    async with stack_of(tmp_path, live=live, reward_up=False) as stack:
        stack.faults(script=["\\boxed{1}", "x" * 400], token_seconds=0.05)
        with pytest.raises(Unavailable) as caught:
            await stack.solve()
        assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE
        await until(lambda: stack.vllm.running == 0)
        assert stack.vllm.finished["abort"] == 3
        stack.faults(script=["\\boxed{1}", "\\boxed{1}", "\\boxed{2}"])
        outcome = await stack.solve(on_scorer_failure="majority")
        assert (outcome.best.answer, outcome.degraded_reason) == ("1", DegradedReason.SCORER_FAILED)


async def test_a_slow_scorer_meets_the_deadline(stack: Stack) -> None:
    stack.faults(script=["\\boxed{1}"])
    stack.reward.gate = asyncio.Event()
    deadline = Deadline.after(2.5)
    outcome = await stack.solve(deadline=deadline, on_scorer_failure="majority")
    assert outcome.stop_reason is StopReason.DEADLINE
    await until(lambda: stack.reward.cancelled + stack.reward.expired > 0)  # it may see the deadline first


async def test_a_hang_until_the_deadline_is_a_time_out_and_no_failure(stack: Stack) -> None:
    stack.faults(script=["\\boxed{1}", "x" * 400], token_seconds=0.02)
    outcome = await stack.solve(seconds=2.5)
    assert (outcome.stop_reason, outcome.n_scored) == (StopReason.DEADLINE, 3)
    assert stack.metric("upstream_calls_total", role="policy", result="timeout") == 1
    assert stack.metric("candidates_total", result="cancelled") == 3
    stack.faults(script=["\\boxed{1}"])
    stack.reward.gate = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await stack.solve(seconds=2.0)
    calls = {kind: stack.metric("upstream_calls_total", role="reward", result=kind) for kind in ("timeout", "late")}
    assert sum(calls.values()) >= 1


@pytest.mark.parametrize("stage", ["generating", "scoring"])
async def test_a_closed_run_leaves_nothing_at_either_service(stack: Stack, stage: str) -> None:
    if stage == "generating":
        stack.faults(script=["x" * 500], token_seconds=0.01)
        reached = lambda: stack.vllm.generated > 6  # noqa: E731
    else:
        stack.reward.gate = asyncio.Event()
        reached = lambda: stack.asked() == 6  # noqa: E731

    async def read() -> None:
        async with aclosing(stack.solver.run(a_longer_job())) as run:
            async for _ in run:
                pass

    reading = asyncio.create_task(read())
    await until(reached)
    reading.cancel()
    await asyncio.wait({reading})
    assert stack.releases.held == 0
    await until(lambda: stack.vllm.running == 0)
    if stage == "scoring":
        await until(lambda: stack.reward.cancelled == (len(stack.reward.requests) or 6))
    assert (await stack.solve(n=1, max_tokens=1)).n_generated == 1 if stage == "generating" else True


async def test_thirty_requests_at_once_share_the_connections(stack: Stack) -> None:
    outcomes = await asyncio.gather(*(stack.solve(n=4, seconds=60) for _ in range(30)))
    assert all(outcome.n_scored == 4 for outcome in outcomes)
