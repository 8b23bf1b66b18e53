"""The solver on doubles: candidates, scores, choices, and what is left when it is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from gateway.solver_bench import Bench, a_job

from acemath_answers import Verdict
from acemath_core.errors import ErrorCode, InvalidRequest
from acemath_core.prompts import POLICY_SYSTEM
from acemath_core.wire import DegradedReason, FinishReason, Selection, StopReason
from acemath_gateway.jobs import CandidateDone, CandidateScored, Outcome
from doubles.ports import SCRIPT, TARGET, BytePrompts, FixedRelease, ScriptedPolicy, ScriptedScorer, TextJudge
from doubles.servers import settled, until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


async def test_the_best_of_n_is_the_highest_score() -> None:
    bench = Bench()
    outcome = await bench.solve()
    assert [c.index for c in outcome.candidates] == list(range(6))
    assert outcome.best.index == 2  # the shortest text; index 5 recites it too and loses the tie
    assert (outcome.n_requested, outcome.n_generated, outcome.n_scored) == (6, 6, 6)
    assert (outcome.stop_reason, outcome.degraded_reason) == (StopReason.COMPLETE, None)
    assert outcome.best.answer == "11"
    assert outcome.target == TARGET
    assert outcome.completion_tokens == 2 * sum(len(text.split(" ")) for text in SCRIPT)
    assert bench.releases.held == 0
    assert bench.judge.calls == []


async def test_the_prompt_has_our_system_text_and_the_scorer_sees_none() -> None:
    bench = Bench()
    await bench.solve()
    ((prompt, sampling),) = bench.policy.calls
    assert bytes(prompt).decode() == f"system:{POLICY_SYSTEM}\nuser:What is 3 * 8?\n"
    assert (sampling.n, sampling.seed) == (6, 0)
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"})
    await bench.solve(turns=turns)
    assert bytes(bench.policy.calls[1][0]).decode() == "system:Be brief.\nuser:1+1\n"
    assert bench.scorer.contexts[-1] == [{"role": "user", "content": "1+1"}]


async def test_candidates_are_scored_while_others_are_still_generated() -> None:
    bench = Bench(policy=ScriptedPolicy(script=["\\boxed{1}", "a b c d e f g h \\boxed{2}"], token_seconds=0.005))
    events = await bench.events(n=2)
    kinds = [(type(e).__name__, getattr(e, "index", None)) for e in events]
    assert kinds == [
        ("CandidateDone", 0),
        ("CandidateScored", 0),
        ("CandidateDone", 1),
        ("CandidateScored", 1),
        ("Outcome", None),
    ]
    outcome = events[-1]
    assert isinstance(outcome, Outcome)
    done = [e for e in events if isinstance(e, CandidateDone)]
    scored = [e for e in events if isinstance(e, CandidateScored)]
    assert outcome.timings.first_candidate_seconds == done[0].seconds
    assert outcome.timings.last_score_seconds == scored[1].seconds


async def test_the_scorer_is_told_of_candidates_while_they_are_written() -> None:
    bench = Bench()
    outcome = await bench.solve()
    assert bench.scorer.told == {c.index: c.text for c in outcome.candidates}
    assert bench.scorer.sessions == 0


async def test_votes_use_classes_of_answers() -> None:
    bench = Bench()
    outcome = await bench.solve(selection=Selection.MAJORITY)
    assert outcome.best.answer == "24"
    assert [c.answer_class for c in outcome.candidates] == [0, 0, 1, 0, 0, 1]
    weighted = await bench.solve(selection=Selection.WEIGHTED_VOTE)
    assert weighted.selection is Selection.WEIGHTED_VOTE
    assert len(bench.judge.calls) == 2


# Two spellings of one answer that only computer algebra can bring together, against two candidates of another.
SPLIT = ["\\boxed{x+y}", "\\boxed{y+x}", "\\boxed{7}", "\\boxed{x+y}", "\\boxed{y+x}", "\\boxed{7}", "\\boxed{7}"]


SAME = frozenset({"x+y", "y+x"})


@pytest.mark.parametrize("verdict", [Verdict.TIMEOUT, Verdict.FAILED, Verdict.OVERLOADED, Verdict.EQUAL])
async def test_a_vote_that_undecided_answers_could_turn_says_so(verdict: Verdict) -> None:
    bench = Bench(policy=ScriptedPolicy(script=SPLIT), judge=TextJudge(verdicts={SAME: verdict}))
    outcome = await bench.solve(n=7, selection=Selection.MAJORITY)
    assert (outcome.best.answer, outcome.degraded_reason) == ("7", DegradedReason.UNDECIDED_ANSWERS)
    assert (outcome.undecided, bench.metric("undecided_comparisons_total")) == (1, 1)
    assert bench.metric("degraded_total", reason="undecided_answers") == 1


@pytest.mark.parametrize("verdict", [Verdict.DIFFERENT, Verdict.UNPARSABLE])
async def test_a_vote_whose_answers_were_compared_stands(verdict: Verdict) -> None:
    bench = Bench(policy=ScriptedPolicy(script=SPLIT), judge=TextJudge(verdicts={SAME: verdict}))
    outcome = await bench.solve(n=7, selection=Selection.MAJORITY)
    assert (outcome.degraded_reason, outcome.undecided) == (None, 0)


async def test_a_vote_that_no_comparison_could_turn_asks_for_none() -> None:
    script = [*SPLIT, "\\boxed{7}", "\\boxed{7}"]
    bench = Bench(policy=ScriptedPolicy(script=script), judge=TextJudge(verdicts={SAME: Verdict.TIMEOUT}))
    outcome = await bench.solve(n=9, selection=Selection.MAJORITY)
    assert (outcome.degraded_reason, bench.judge.compared) == (None, 0)


async def test_temperature_zero_makes_one_candidate() -> None:
    bench = Bench()
    outcome = await bench.solve(temperature=0.0, n=8)
    assert bench.policy.calls[0][1].n == 1
    assert (outcome.n_requested, outcome.n_generated, outcome.stop_reason) == (8, 1, StopReason.GREEDY)
    assert outcome.degraded_reason is None


async def test_a_candidate_cut_at_its_limit_is_scored_too() -> None:
    outcome = await Bench().solve(max_tokens=2)
    assert {c.finish_reason for c in outcome.candidates} == {FinishReason.LENGTH}
    assert outcome.n_scored == 6


async def test_too_long_is_refused_with_the_numbers() -> None:
    bench = Bench(prompts=BytePrompts(max_length=100))
    with pytest.raises(InvalidRequest, match="163 together; the model takes 100") as caught:
        await bench.solve(turns=({"role": "system", "content": "x" * 85}, {"role": "user", "content": ""}))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert bench.policy.calls == []
    assert bench.metric("requests_total", outcome="refused", selection="best_of_n") == 1


async def test_the_servers_own_limit_counts_too() -> None:
    bench = Bench(releases=FixedRelease(replace(TARGET, context_length=90)))
    with pytest.raises(InvalidRequest, match="the model takes 90"):
        await bench.solve()


async def test_scoring_is_bounded_over_all_jobs() -> None:
    bench = Bench(scorer=ScriptedScorer(seconds=0.005), max_scoring=2)
    outcomes = await asyncio.gather(*(bench.solve() for _ in range(3)))
    assert all(o.n_scored == 6 for o in outcomes)
    assert bench.scorer.most_running == 2


HANGING: dict[str, Callable[[], Bench]] = {
    "generating": lambda: Bench(policy=ScriptedPolicy(hang_after=1)),
    "scoring": lambda: Bench(scorer=ScriptedScorer(seconds=3600)),
    "queued for scoring": lambda: Bench(scorer=ScriptedScorer(seconds=3600), max_scoring=1),
    "both": lambda: Bench(
        policy=ScriptedPolicy(script=["\\boxed{1}", "a b c"], hang_after=1), scorer=ScriptedScorer(seconds=3600)
    ),
}


@pytest.mark.parametrize("stage", HANGING)
async def test_closing_a_run_leaves_nothing(stage: str) -> None:
    bench = HANGING[stage]()
    before = asyncio.all_tasks()
    run = bench.solver.run(a_job(seconds=3600))

    async def read() -> None:
        async with aclosing(run):
            async for _ in run:
                pass

    reading = asyncio.create_task(read())
    await until(lambda: bench.releases.held == 1)
    await settled()
    reading.cancel()
    await asyncio.wait({reading})
    assert asyncio.all_tasks() == before
    assert (bench.releases.held, bench.policy.running, bench.scorer.running, bench.scorer.sessions) == (0, 0, 0, 0)
    assert bench.metric("requests_total", outcome="cancelled", selection="best_of_n") == 1
    assert bench.metric("inflight_sequences") == bench.metric("inflight_requests") == 0
    assert bench.metric("scoring_queue") == 0


async def test_closing_before_the_first_event_and_after_one() -> None:
    bench = Bench()
    run = bench.solver.run(a_job())
    await run.aclose()
    assert bench.releases.given == 0
    run = bench.solver.run(a_job())
    await anext(run)
    await run.aclose()
    assert bench.releases.held == 0


async def test_a_bug_is_not_taken_for_a_declared_failure() -> None:
    def broken(text: str) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Bench(scorer=ScriptedScorer(rule=broken)).solve()


async def test_the_duration_of_a_request_holds_its_wait_for_places() -> None:
    bench = Bench()
    await bench.solve(asked=time.monotonic() - 30)
    assert bench.metric("request_duration_seconds_sum", outcome="ok") >= 30


async def test_metrics_of_a_job() -> None:
    bench = Bench()
    outcome = await bench.solve()
    assert bench.metric("requests_total", outcome="ok", selection="best_of_n") == 1
    assert bench.metric("candidates_total", result="scored") == 6
    assert bench.metric("generated_tokens_total") == outcome.completion_tokens
    assert bench.metric("rejected_tokens_total") == outcome.completion_tokens - outcome.best.completion_tokens
    assert bench.metric("score_count") == 6
    assert bench.metric("score_margin_count") == bench.metric("straggler_wait_seconds_count") == 1
    assert bench.metric("candidates_per_request_sum") == 6


async def test_ranked_puts_the_answer_first_and_the_unscored_last() -> None:
    outcome = await Bench(scorer=ScriptedScorer(unscorable="11")).solve(selection=Selection.MAJORITY)
    assert outcome.ranked[0] == outcome.best
    assert [c.index for c in outcome.ranked] == [0, 3, 1, 4, 2, 5]
