"""Jobs with `early_reject`: hopeless candidates are stopped, the answer says so, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from gateway.solver_bench import a_job
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.errors import ErrorCode, Unavailable
from acemath_core.wire import DegradedReason, Selection, StopReason
from acemath_gateway.jobs import CandidateDone, CandidateRejected, Outcome, SolveEvent
from acemath_gateway.keys.quotas import Bill
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import PolicyEvent, Sampling, TokensGenerated
from acemath_gateway.rejection import RejectRules
from acemath_gateway.solver import Solver
from doubles.ports import BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge
from doubles.servers import until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# Candidate i is worth i from its first word on; its answer is its number, and it has twelve words.
WORTHS = [f"worth {i} {'so ' * 9}\\boxed{{{i}}}" for i in range(8)]


def worth(text: str) -> float:
    return float(text.split()[1])


@dataclass
class Bench:
    """A solver on doubles that judges candidates at their fourth word."""

    policy: ScriptedPolicy = field(default_factory=lambda: ScriptedPolicy(WORTHS, token_seconds=0.003))
    scorer: ScriptedScorer = field(default_factory=lambda: ScriptedScorer(worth))
    rules: RejectRules = field(default_factory=lambda: RejectRules(after_tokens=4))
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.releases = FixedRelease()
        self.solver = Solver(
            policy=self.policy,
            scorer=self.scorer,
            judge=TextJudge(),
            releases=self.releases,
            encoders=BytePrompts(),
            metrics=GatewayMetrics.on(self.registry),
            rejection=self.rules,
        )

    async def events(self, bill: Bill | None = None, **changes: Any) -> list[SolveEvent]:
        job = a_job(**({"n": 8, "early_reject": True} | changes))
        async with aclosing(self.solver.run(job, (bill or Bill()).spend)) as run:
            return [event async for event in run]

    async def solve(self, **changes: Any) -> Outcome:
        last = (await self.events(**changes))[-1]
        assert isinstance(last, Outcome)
        return last

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels) or 0.0


SCORED = [selection for selection in Selection if selection is not Selection.MAJORITY]


@pytest.mark.parametrize("selection", SCORED)
async def test_the_worse_half_is_stopped_and_the_winner_is_the_same(selection: Selection) -> None:
    bench = Bench()
    outcome, whole = await bench.solve(selection=selection), await bench.solve(selection=selection, early_reject=False)
    assert (outcome.best.text, outcome.best.score) == (whole.best.text, whole.best.score)
    assert outcome.stop_reason is StopReason.COMPLETE
    assert [item.index for item in outcome.candidates] == [4, 5, 6, 7]
    assert (outcome.n_requested, outcome.n_generated, outcome.n_scored, outcome.n_rejected) == (8, 4, 4, 4)
    assert (outcome.degraded_reason, whole.n_rejected) == (None, 0)
    assert (bench.policy.apart, bench.policy.stopped) == (1, [0, 1, 2, 3])
    assert (bench.scorer.peeked, bench.scorer.dropped) == (list(range(8)), [0, 1, 2, 3])


async def test_what_was_stopped_is_paid_for_and_counted() -> None:
    bench, bill = Bench(), Bill()
    events = await bench.events(bill)
    outcome = events[-1]
    assert isinstance(outcome, Outcome)
    stopped = [event for event in events if isinstance(event, CandidateRejected)]
    assert [(event.index, event.partial_score) for event in stopped] == [(i, float(i)) for i in range(4)]
    assert all(4 <= event.completion_tokens < 12 for event in stopped)
    assert outcome.completion_tokens == 4 * 12 + sum(event.completion_tokens for event in stopped)
    assert bill.tokens == outcome.completion_tokens
    assert {event.index for event in events if isinstance(event, CandidateDone)} == {4, 5, 6, 7}
    results = {kind: bench.metric("candidates_total", result=kind) for kind in ("scored", "rejected", "cancelled")}
    assert results == {"scored": 4, "rejected": 4, "cancelled": 0}
    assert bench.metric("generated_tokens_total") == outcome.completion_tokens


class Late(ScriptedPolicy):
    """Two tokens of each stopped candidate were on their way."""

    async def _recite(self, sampling: Sampling, stopped: set[int]) -> AsyncIterator[PolicyEvent]:
        async with aclosing(super()._recite(sampling, stopped)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event
        for index in sorted(stopped):
            yield TokensGenerated(index, "late", (1, 2))


async def test_tokens_of_a_stopped_candidate_that_were_on_their_way_are_paid_for_and_not_scored() -> None:
    bench, bill = Bench(policy=Late(WORTHS, token_seconds=0.003)), Bill()
    events = await bench.events(bill)
    told = sum(event.completion_tokens for event in events if isinstance(event, CandidateRejected))
    assert bill.tokens == 4 * 12 + told + 4 * 2 == bench.metric("generated_tokens_total")
    assert not [text for text in bench.scorer.told.values() if "late" in text]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=2, max_size=8),
    st.floats(0.05, 0.95),
    st.integers(1, 12),
    st.booleans(),
)
async def test_where_partial_scores_are_right_the_best_of_n_is_the_same(
    plans: list[tuple[int, int]], keep: float, after_tokens: int, adaptive: bool
) -> None:
    """Candidates are worth something and so long, and are judged whenever that comes; equal ones go by index."""
    script = [f"worth {worth} {'so ' * words}\\boxed{{{i}}}" for i, (worth, words) in enumerate(plans)]
    bench = Bench(policy=ScriptedPolicy(script), rules=RejectRules(after_tokens, keep))
    asked = {"n": len(plans), "adaptive": adaptive}
    outcome, whole = await bench.solve(**asked), await bench.solve(**asked, early_reject=False)
    assert outcome.best.index == whole.best.index
    assert outcome.n_generated + outcome.n_rejected == len(plans)
    assert outcome.completion_tokens <= whole.completion_tokens


async def test_a_good_candidate_that_has_ended_takes_a_place_among_the_kept() -> None:
    script = ["worth 9 \\boxed{9}", *WORTHS[1:4]]
    outcome = await Bench(policy=ScriptedPolicy(script, token_seconds=0.003)).solve(n=4)
    assert [item.index for item in outcome.candidates] == [0, 3]
    assert (outcome.best.answer, outcome.n_rejected) == ("9", 2)


async def test_nothing_is_stopped_before_the_slowest_has_come_far_enough() -> None:
    bench = Bench(rules=RejectRules(after_tokens=13))
    assert (await bench.solve()).n_rejected == 0
    assert bench.scorer.peeked == []


@pytest.mark.parametrize("way", ["never", "late", "none", "not of all"])
async def test_without_partial_scores_it_is_a_job_like_any_other(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr("acemath_gateway.checkpoint._PEEK_SECONDS", 3600.0)
    if way == "never":
        bench.scorer.blind = True
    elif way in ("none", "not of all"):

        async def peek(_: object, index: int) -> float | None:
            return None if way == "none" or index == 5 else float(index)

        monkeypatch.setattr("doubles.ports.ScriptedSession.peek", peek)
    else:
        monkeypatch.setattr("acemath_gateway.checkpoint._PEEK_SECONDS", 0.0)
    outcome, whole = await bench.solve(), await bench.solve(early_reject=False)
    assert (outcome.candidates, outcome.chosen, outcome.n_rejected) == (whole.candidates, whole.chosen, 0)
    assert outcome.stop_reason is StopReason.COMPLETE  # nobody waited for partial scores once all had ended


async def test_a_scorer_that_fails_stops_nobody() -> None:
    down = Unavailable("down", code=ErrorCode.REWARD_UNAVAILABLE)
    bench = Bench(scorer=ScriptedScorer(worth, error=down, blind=True))
    outcome = await bench.solve(on_scorer_failure="majority")
    assert (outcome.n_generated, outcome.n_rejected) == (8, 0)
    assert outcome.degraded_reason is DegradedReason.SCORER_FAILED


async def test_each_wave_of_an_adaptive_job_is_judged_by_itself() -> None:
    bench = Bench()
    outcome = await bench.solve(adaptive=True)
    assert [sampling.seed for _, sampling in bench.policy.calls] == [0, 4, 6]
    assert [item.index for item in outcome.candidates] == [2, 3, 5, 7]
    assert (outcome.n_generated, outcome.n_rejected, outcome.stop_reason) == (4, 4, StopReason.COMPLETE)
    assert outcome.best.answer == "7"


async def test_a_wave_of_one_has_nobody_to_be_compared_with() -> None:
    bench = Bench()
    assert (await bench.solve(adaptive=True, n=5)).n_rejected == 2
    assert (bench.policy.apart, len(bench.policy.calls)) == (1, 2)


async def test_the_caller_gets_as_many_candidates_as_it_wants_to_see() -> None:
    outcome = await Bench().solve(at_least=6)
    assert [item.index for item in outcome.candidates] == [2, 3, 4, 5, 6, 7]
    adaptive = await Bench().solve(at_least=3, adaptive=True)
    assert [item.index for item in adaptive.candidates] == [1, 2, 3, 5, 7]


async def test_failed_candidates_have_no_rank_and_are_still_said() -> None:
    outcome = await Bench(policy=ScriptedPolicy(WORTHS, token_seconds=0.003, fail={6: "abort", 7: "abort"})).solve()
    assert [item.index for item in outcome.candidates] == [3, 4, 5]
    assert (outcome.n_rejected, outcome.stop_reason) == (3, StopReason.POLICY_FAILED)
    assert outcome.degraded_reason is DegradedReason.FEWER_CANDIDATES


async def test_temperature_zero_makes_one_candidate() -> None:
    outcome = await Bench().solve(temperature=0.0)
    assert (outcome.n_generated, outcome.n_rejected, outcome.stop_reason) == (1, 0, StopReason.GREEDY)


async def test_at_the_deadline_the_best_so_far_is_given() -> None:
    script = [*WORTHS[:4], "worth 9 \\boxed{9}"]
    bench = Bench(policy=ScriptedPolicy(script, token_seconds=0.003, hang_after=8), scorer=ScriptedScorer(worth))
    outcome = await bench.solve(n=5, seconds=3.0)
    assert (outcome.best.answer, outcome.n_rejected, outcome.stop_reason) == ("9", 2, StopReason.DEADLINE)
    assert bench.metric("candidates_total", result="cancelled") == 2


@pytest.mark.parametrize("stage", ["writing", "peeking"])
async def test_a_closed_run_leaves_nothing(stage: str) -> None:
    bench = Bench(scorer=ScriptedScorer(worth, blind=True), policy=ScriptedPolicy(WORTHS, hang_after=6))
    async with aclosing(bench.solver.run(a_job(n=8, early_reject=True, seconds=60))) as run:
        reading = asyncio.ensure_future(anext(run))
        await until(lambda: bool(bench.scorer.peeked) if stage == "peeking" else bench.policy.running > 0)
        reading.cancel()
        await asyncio.wait({reading})
    assert (bench.policy.running, bench.releases.held, bench.scorer.sessions) == (0, 0, 0)
    assert bench.metric("inflight_sequences") == 0
