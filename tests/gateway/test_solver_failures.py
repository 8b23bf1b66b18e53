"""What the solver makes of a policy, a scorer and a clock that let it down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gateway.solver_bench import Bench

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.wire import DegradedReason, Selection, StopReason
from acemath_gateway import gathering
from doubles.ports import TARGET, FixedRelease, ScriptedPolicy, ScriptedScorer

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


SCORER_DOWN = Unavailable("down", code=ErrorCode.REWARD_UNAVAILABLE)


async def test_failed_candidates_are_dropped_and_said() -> None:
    bench = Bench(policy=ScriptedPolicy(fail={0: "abort", 3: "error"}))
    outcome = await bench.solve()
    assert [c.index for c in outcome.candidates] == [1, 2, 4, 5]
    assert (outcome.stop_reason, outcome.degraded_reason) == (
        StopReason.POLICY_FAILED,
        DegradedReason.FEWER_CANDIDATES,
    )
    assert bench.metric("candidates_total", result="failed") == 2


async def test_a_broken_stream_keeps_what_had_finished() -> None:
    policy = ScriptedPolicy(script=["\\boxed{1}", "a b c d \\boxed{2}"], break_after=3)
    outcome = await Bench(policy=policy).solve(n=4)
    assert [c.index for c in outcome.candidates] == [0, 2]
    assert outcome.discarded_tokens == 6
    assert outcome.completion_tokens == 8
    assert outcome.stop_reason is StopReason.POLICY_FAILED


@pytest.mark.parametrize("fault", [{"break_after": 0}, {"fail": dict.fromkeys(range(6), "abort")}])
async def test_no_candidate_at_all_is_an_error(fault: dict[str, Any]) -> None:
    bench = Bench(policy=ScriptedPolicy(**fault))
    with pytest.raises(Unavailable) as caught:
        await bench.solve()
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE
    assert bench.releases.held == 0


async def test_errors_of_policy_and_release_pass_through() -> None:
    refused = InvalidRequest("no", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    with pytest.raises(InvalidRequest):
        await Bench(policy=ScriptedPolicy(error=refused)).solve()
    with pytest.raises(Unavailable):
        await Bench(releases=FixedRelease(error=Unavailable("starting", code=ErrorCode.NOT_READY))).solve()


async def test_a_failing_scorer_is_an_error_and_stops_generation_at_once() -> None:
    policy = ScriptedPolicy(script=["\\boxed{1}", "a b \\boxed{2}"], hang_after=2)
    bench = Bench(policy=policy, scorer=ScriptedScorer(error=SCORER_DOWN))
    with pytest.raises(Unavailable) as caught:
        await bench.solve(seconds=60)
    assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE
    assert (policy.running, policy.aborted) == (0, 1)


async def test_a_failing_scorer_becomes_a_declared_majority_where_allowed() -> None:
    bench = Bench(scorer=ScriptedScorer(error=SCORER_DOWN))
    outcome = await bench.solve(on_scorer_failure="majority")
    assert (outcome.selection, outcome.degraded_reason) == (Selection.MAJORITY, DegradedReason.SCORER_FAILED)
    assert outcome.best.answer == "24"
    assert outcome.n_scored == 0
    assert bench.metric("degraded_total", reason="scorer_failed") == 1


async def test_a_scorer_that_only_fails_is_not_asked_for_every_candidate() -> None:
    bench = Bench(scorer=ScriptedScorer(error=SCORER_DOWN), max_scoring=1)
    await bench.solve(n=8, on_scorer_failure="majority")
    assert len(bench.scorer.calls) == 3


@pytest.mark.parametrize("job", [{}, {"on_scorer_failure": "majority"}, {"selection": Selection.WEIGHTED_VOTE}])
@pytest.mark.parametrize("failing", [{0}, {5}, {1, 3}, {0, 1}])
async def test_a_score_that_fails_takes_only_its_own_candidate(job: dict[str, Any], failing: set[int]) -> None:
    bench = Bench(scorer=ScriptedScorer(error=SCORER_DOWN, failing=failing), max_scoring=1)
    outcome = await bench.solve(**job)
    assert outcome.selection is job.get("selection", Selection.BEST_OF_N)
    assert (outcome.degraded_reason, outcome.n_scored) == (DegradedReason.PARTLY_SCORED, 6 - len(failing))
    assert outcome.best.score is not None
    assert bench.metric("degraded_total", reason="partly_scored") == 1


async def test_a_majority_uses_the_scores_that_there_are() -> None:
    policy = ScriptedPolicy(script=["\\boxed{1}", "so it is \\boxed{2}"])
    bench = Bench(policy=policy, scorer=ScriptedScorer(error=SCORER_DOWN, failing={2}, rule=len), max_scoring=1)
    outcome = await bench.solve(selection=Selection.MAJORITY, n=4)
    assert (outcome.best.answer, outcome.n_scored) == ("2", 3)  # a tie of votes; the scores break it
    assert outcome.degraded_reason is DegradedReason.PARTLY_SCORED


async def test_all_scores_failing_is_the_scorers_error_however_few_they_are() -> None:
    with pytest.raises(Unavailable) as caught:
        await Bench(scorer=ScriptedScorer(error=SCORER_DOWN)).solve(n=1)
    assert caught.value.code is ErrorCode.REWARD_UNAVAILABLE


async def test_without_a_reward_service_nothing_is_generated_in_vain() -> None:
    bench = Bench(releases=FixedRelease(replace(TARGET, reward_endpoints=())))
    with pytest.raises(Unavailable, match="no reward service"):
        await bench.solve()
    assert bench.policy.calls == []
    assert (await bench.solve(on_scorer_failure="majority")).degraded_reason is DegradedReason.SCORER_FAILED


async def test_a_candidate_that_cannot_be_scored_is_left_out() -> None:
    bench = Bench(scorer=ScriptedScorer(unscorable="11"))
    outcome = await bench.solve()
    assert outcome.degraded_reason is DegradedReason.PARTLY_SCORED
    assert [c.score is None for c in outcome.candidates] == [False, False, True, False, False, True]
    assert outcome.best.answer == "24"


async def test_when_none_can_be_scored_the_caller_decides() -> None:
    bench = Bench(scorer=ScriptedScorer(unscorable="boxed"))
    with pytest.raises(Unavailable) as caught:
        await bench.solve()
    assert (caught.value.code, caught.value.retry_after) == (ErrorCode.NO_USABLE_CANDIDATE, 2.0)
    outcome = await bench.solve(on_scorer_failure="majority")
    assert (outcome.selection, outcome.degraded_reason) == (Selection.MAJORITY, DegradedReason.SCORER_FAILED)


TOO_LONG = InvalidRequest("candidates.0: too long", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)


async def test_a_problem_too_long_for_the_reward_model_is_the_callers() -> None:
    bench = Bench(scorer=ScriptedScorer(unscorable="boxed", refusal=TOO_LONG))
    with pytest.raises(InvalidRequest) as caught:
        await bench.solve()
    assert (caught.value.code, caught.value.param) == (ErrorCode.CONTEXT_LENGTH_EXCEEDED, "messages")
    assert bench.metric("requests_total", outcome="refused", selection="best_of_n") == 1
    assert (await bench.solve(on_scorer_failure="majority")).selection is Selection.MAJORITY


async def test_the_best_so_far_is_given_at_the_deadline() -> None:
    for _ in range(3):  # a tenth of it is kept back, and no machine stalls for that long at this moment every time
        policy = ScriptedPolicy(script=["\\boxed{1}", "a b c \\boxed{2}"], hang_after=2)
        bench, deadline = Bench(policy=policy), Deadline.after(3.0)
        outcome = await bench.solve(n=4, deadline=deadline)
        if not deadline.expired():
            break
    assert not deadline.expired()
    assert [c.index for c in outcome.candidates] == [0, 2]
    assert (outcome.stop_reason, outcome.degraded_reason) == (StopReason.DEADLINE, DegradedReason.FEWER_CANDIDATES)
    assert (policy.running, policy.aborted) == (0, 1)
    assert bench.metric("candidates_total", result="cancelled") == 2


async def test_scores_that_do_not_come_in_time_are_missing() -> None:
    scorer = ScriptedScorer(seconds=60)
    with pytest.raises(DeadlineExceeded, match="scored") as late:
        await Bench(scorer=scorer).solve(seconds=2.0)
    assert late.value.should_retry is False
    assert (scorer.running, scorer.cancelled) == (0, 6)
    outcome = await Bench(scorer=ScriptedScorer(seconds=60)).solve(seconds=2.0, on_scorer_failure="majority")
    assert (outcome.selection, outcome.stop_reason) == (Selection.MAJORITY, StopReason.DEADLINE)


async def test_nothing_finished_in_time_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded, match="finished"):
        await Bench(policy=ScriptedPolicy(hang_after=0)).solve(seconds=0.1)
    with pytest.raises(DeadlineExceeded):
        await Bench().solve(seconds=0.0)


@pytest.mark.parametrize("adaptive", [False, True])
async def test_a_majority_does_not_wait_for_a_scorer_that_hangs(
    monkeypatch: pytest.MonkeyPatch, adaptive: bool
) -> None:
    monkeypatch.setattr(gathering, "_TIE_SECONDS", 0.05)
    scorer = ScriptedScorer(seconds=3600)
    outcome = await Bench(scorer=scorer).solve(seconds=600, selection=Selection.MAJORITY, adaptive=adaptive)
    assert (outcome.selection, outcome.n_scored) == (Selection.MAJORITY, 0)
    assert outcome.degraded_reason is DegradedReason.SCORER_FAILED and outcome.stop_reason is not StopReason.DEADLINE
    assert scorer.running == 0


async def test_where_others_can_be_asked_the_scorer_itself_leaves_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "_TIE_SECONDS", 0.0)
    two = replace(TARGET, reward_endpoints=("http://a", "http://b"))
    bench = Bench(scorer=ScriptedScorer(seconds=0.2), releases=FixedRelease(two))
    outcome = await bench.solve(selection=Selection.MAJORITY)
    assert outcome.n_scored == outcome.n_generated == 6 and outcome.degraded_reason is None


async def test_a_majority_needs_no_scorer() -> None:
    bench = Bench(scorer=ScriptedScorer(error=SCORER_DOWN))
    outcome = await bench.solve(selection=Selection.MAJORITY)
    assert (outcome.best.answer, outcome.degraded_reason) == ("24", DegradedReason.SCORER_FAILED)
