from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from gateway.solver_bench import a_job
from prometheus_client import CollectorRegistry

from acemath_core.calibration import Calibration
from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, ServiceError, Unavailable
from acemath_core.wire import DegradedReason, Selection, StopReason
from acemath_gateway.jobs import Outcome, SolveJob
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import PolicyEvent, ReleaseTarget, Sampling
from acemath_gateway.service import cost
from acemath_gateway.solver import Solver
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import REWARD, BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge
from doubles.servers import until

SPLIT = [f"{'so ' * (i % 3)}\\boxed{{{i % 5}}}" for i in range(16)]
SAME = ["\\boxed{24}"]
# Nothing is so sure: only what cannot change ends a job.
NO_BETS = math.inf


class FailingPolicy(ScriptedPolicy):
    """From its second call on it raises, at once or after its first candidate has ended."""

    after_a_candidate = False

    async def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncIterator[PolicyEvent]:
        first = not self.calls
        async with aclosing(super().generate(release, prompt_ids, sampling, deadline)) as events:
            if not first and not self.after_a_candidate:
                self.calls.append((tuple(prompt_ids), sampling))
                raise Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE)
            async for event in events:
                yield event
                if not first:
                    raise Unavailable("another version answered", code=ErrorCode.POLICY_UNAVAILABLE)


class LaterWavesHang(ScriptedPolicy):
    """From its second call on it gives nothing."""

    def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncGenerator[PolicyEvent, None]:
        self.hang_after = 0 if self.calls else None
        return super().generate(release, prompt_ids, sampling, deadline)


@dataclass
class Bench:
    """A solver on doubles."""

    policy: ScriptedPolicy = field(default_factory=lambda: ScriptedPolicy(SPLIT))
    scorer: ScriptedScorer = field(default_factory=lambda: ScriptedScorer(lambda text: 0.0))
    confidence: float = 0.95
    calibration: Calibration | None = None
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.judge, self.releases = TextJudge(), FixedRelease()
        self.solver = Solver(
            policy=self.policy,
            scorer=self.scorer,
            judge=self.judge,
            releases=self.releases,
            encoders=BytePrompts(),
            metrics=GatewayMetrics.on(self.registry),
            calibration=self.calibration,
            confidence=self.confidence,
        )

    async def solve(self, **changes: Any) -> Outcome:
        async with aclosing(self.solver.run(adaptive_job(**changes))) as run:
            last = [event async for event in run][-1]
        assert isinstance(last, Outcome)
        return last

    @property
    def waves(self) -> list[tuple[int, int]]:
        return [(sampling.n, sampling.seed) for _, sampling in self.policy.calls]

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


def adaptive_job(**changes: Any) -> SolveJob:
    return a_job(**{"n": 16, "seed": 3, "selection": Selection.MAJORITY, "adaptive": True, **changes})


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()


@pytest.mark.parametrize("selection", Selection)
async def test_a_job_that_is_never_settled_is_the_job_that_was_not_adaptive(selection: Selection) -> None:
    waves, whole = Bench(confidence=NO_BETS), Bench()
    adaptive, fixed = await waves.solve(selection=selection), await whole.solve(selection=selection, adaptive=False)
    assert waves.waves == [
        (4, 3),
        (2, 7),
        (2, 9),
        (2, 11),
        (3, 13),
        (3, 16),
    ]  # candidate i is sampled with seed + i in every wave
    assert whole.waves == [(16, 3)]
    assert adaptive.candidates == fixed.candidates
    assert (adaptive.chosen, adaptive.stop_reason) == (fixed.chosen, StopReason.COMPLETE)
    assert adaptive.degraded_reason is None
    assert waves.metric("early_stops_total", reason="agreement") == 0


@pytest.mark.parametrize("selection", Selection)
async def test_four_that_agree_are_enough(selection: Selection) -> None:
    bench = Bench(policy=ScriptedPolicy(SAME))
    outcome = await bench.solve(selection=selection)
    assert bench.waves == [(4, 3)]
    assert (outcome.n_requested, outcome.n_generated, outcome.n_scored) == (16, 4, 4)
    assert (outcome.stop_reason, outcome.degraded_reason) == (StopReason.AGREEMENT, None)
    assert bench.metric("early_stops_total", reason="agreement") == 1
    assert (bench.metric("saved_candidates_total"), bench.metric("saved_tokens_total")) == (12, 12)
    assert bench.metric("candidates_total", result="cancelled") == 0
    assert bench.metric("inflight_sequences") == 0 == bench.releases.held


async def test_a_higher_score_for_another_answer_keeps_best_of_n_going() -> None:
    script = [*["\\boxed{24}"] * 4, "\\boxed{11}", *["\\boxed{24}"] * 11]
    bench = Bench(policy=ScriptedPolicy(script), scorer=ScriptedScorer(lambda text: float("11" in text)))
    outcome = await bench.solve(selection=Selection.BEST_OF_N, seed=1)
    assert (outcome.best.answer, outcome.stop_reason) == ("11", StopReason.COMPLETE)
    assert (await bench.solve(seed=1)).stop_reason is StopReason.AGREEMENT


async def test_what_cannot_change_cuts_off_those_still_being_written() -> None:
    slow = [f"{'wait ' * (0 if i < 9 else 40)}\\boxed{{24}}" for i in range(16)]
    bench = Bench(policy=ScriptedPolicy(slow, token_seconds=0.005), confidence=NO_BETS)
    outcome = await bench.solve(seed=0)
    assert (outcome.stop_reason, outcome.n_generated, outcome.n_scored) == (StopReason.CANNOT_CHANGE, 9, 9)
    assert (bench.policy.aborted, bench.policy.running) == (1, 0)
    assert bench.metric("candidates_total", result="cancelled") == 1
    assert bench.metric("saved_candidates_total") == 6
    assert outcome.completion_tokens > 9  # what was cut off has cost something too
    assert outcome.degraded_reason is None


async def test_answers_are_compared_only_when_something_could_be_settled() -> None:
    bench = Bench(confidence=NO_BETS)
    await bench.solve(selection=Selection.BEST_OF_N)
    assert len(bench.judge.calls) == 6  # once after each wave


async def test_the_caller_gets_as_many_candidates_as_it_wants_to_see() -> None:
    bench = Bench(policy=ScriptedPolicy(SAME))
    outcome = await bench.solve(at_least=6)
    assert (bench.waves, outcome.n_generated) == ([(6, 3)], 6)


async def test_a_later_wave_that_gives_nothing_leaves_what_was_there() -> None:
    bench = Bench(policy=FailingPolicy(SPLIT), confidence=NO_BETS)
    outcome = await bench.solve()
    assert (outcome.n_generated, outcome.stop_reason) == (4, StopReason.POLICY_FAILED)
    assert outcome.degraded_reason is DegradedReason.FEWER_CANDIDATES
    assert len(bench.waves) == 2


async def test_a_later_wave_that_may_not_be_used_fails_the_job() -> None:
    policy = FailingPolicy(SPLIT)
    policy.after_a_candidate = True
    with pytest.raises(Unavailable, match="another version"):
        await Bench(policy=policy, confidence=NO_BETS).solve()


async def test_the_first_waves_failure_is_the_jobs() -> None:
    gone = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE)
    with pytest.raises(Unavailable, match="gone"):
        await Bench(policy=ScriptedPolicy(error=gone)).solve()


async def test_candidates_that_fail_count_as_neither_made_nor_to_come() -> None:
    bench = Bench(policy=ScriptedPolicy(SPLIT, fail={0: "broken"}), confidence=NO_BETS)
    outcome = await bench.solve(n=8)  # 0, 4 and 6 fail: after five of eight nothing is to come
    assert (outcome.n_generated, outcome.stop_reason) == (5, StopReason.POLICY_FAILED)
    assert bench.metric("candidates_total", result="failed") == 3


async def test_without_the_scorer_a_majority_that_was_allowed_is_settled_too() -> None:
    down = Unavailable("down", code=ErrorCode.REWARD_UNAVAILABLE)
    bench = Bench(policy=ScriptedPolicy(SAME), scorer=ScriptedScorer(error=down))
    outcome = await bench.solve(selection=Selection.BEST_OF_N, on_scorer_failure="majority")
    assert (outcome.selection, outcome.stop_reason) == (Selection.MAJORITY, StopReason.AGREEMENT)
    assert outcome.degraded_reason is DegradedReason.SCORER_FAILED
    with pytest.raises(ServiceError, match="down"):
        await bench.solve(selection=Selection.BEST_OF_N)


def calibrated(reward: str, temperature: float = 1.0) -> Calibration:
    return Calibration(reward=reward, temperature=temperature, slope=1.0, intercept=0.0, problems=1)


@pytest.mark.parametrize(("reward", "reason"), [(REWARD, StopReason.SCORE), ("other@s1", StopReason.COMPLETE)])
async def test_a_calibrated_score_settles_it_for_its_own_reward_version(reward: str, reason: StopReason) -> None:
    scorer = ScriptedScorer(lambda text: 3.0 if "{0}" in text else -3.0)
    bench = Bench(scorer=scorer, calibration=calibrated(reward))
    assert (await bench.solve(selection=Selection.BEST_OF_N)).stop_reason is reason


@pytest.mark.parametrize(("reward", "answer"), [(REWARD, "2"), ("other@s1", "1")])
async def test_votes_are_weighed_at_the_temperature_of_the_reward_version(reward: str, answer: str) -> None:
    script = ["\\boxed{1}", "\\boxed{2}", "\\boxed{2}"]
    scorer = ScriptedScorer(lambda text: 2.0 if "{1}" in text else 0.0)
    bench = Bench(policy=ScriptedPolicy(script), scorer=scorer, calibration=calibrated(reward, temperature=9.0))
    outcome = await bench.solve(selection=Selection.WEIGHTED_VOTE, n=3, seed=0, adaptive=False)
    assert outcome.best.answer == answer


async def test_at_the_deadline_there_is_no_further_wave() -> None:
    bench = Bench(policy=LaterWavesHang(SPLIT), confidence=NO_BETS)
    outcome = await bench.solve(seconds=3.0)
    assert outcome.stop_reason is StopReason.DEADLINE
    assert (outcome.n_generated, len(bench.policy.calls)) == (4, 2)


async def test_temperature_zero_makes_one_candidate() -> None:
    outcome = await Bench().solve(temperature=0.0)
    assert (outcome.n_generated, outcome.stop_reason) == (1, StopReason.GREEDY)


async def test_a_closed_run_leaves_nothing() -> None:
    bench = Bench(policy=ScriptedPolicy(["a b c d e f g h"], token_seconds=0.01))
    async with aclosing(bench.solver.run(adaptive_job())) as run:
        reading = asyncio.ensure_future(anext(run))
        await until(lambda: bench.policy.running > 0)
        reading.cancel()
        await asyncio.wait({reading})
    assert (bench.policy.running, bench.releases.held) == (0, 0)
    assert bench.metric("inflight_sequences") == 0


def test_an_adaptive_job_takes_the_places_of_its_largest_wave() -> None:
    assert [cost(adaptive_job(n=n)) for n in (1, 4, 8, 16, 64)] == [1, 4, 4, 4, 14]
    assert cost(adaptive_job(adaptive=False)) == 16
    assert cost(adaptive_job(temperature=0.0)) == 1


async def test_solve_says_what_was_asked_made_and_why_it_ended() -> None:
    gateway = GatewayOnDoubles(policy=ScriptedPolicy(SAME))
    async with gateway_client(gateway) as http:
        body = (await http.post("/v1/solve", json={"problem": PROBLEM, "n": 16, "adaptive": True})).json()
    assert (body["n_requested"], body["n_generated"], body["n_scored"]) == (16, 4, 4)
    assert (body["stop_reason"], body["degraded"]) == ("agreement", False)


async def test_a_chat_gets_its_choices() -> None:
    gateway = GatewayOnDoubles(policy=ScriptedPolicy(SAME))
    chat = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "best_of": 16, "n": 5}
    async with gateway_client(gateway) as http:
        body = (await http.post("/v1/chat/completions", json=chat | {"acemath": {"adaptive": True}})).json()
    assert len(body["choices"]) == 5
    assert (body["acemath"]["n_generated"], body["acemath"]["stop_reason"]) == (5, "agreement")
