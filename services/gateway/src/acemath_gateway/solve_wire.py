"""`POST /v1/solve` in both directions: the wire's words to a job, a job's events and outcome to the wire's."""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import replace

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest
from acemath_core.wire import (
    MAX_SEED,
    CompletionTokensDetails,
    FinishReason,
    Priority,
    Selection,
    ServedModels,
    Solution,
    SolvedCandidate,
    SolveRequest,
    SolveTimings,
    Usage,
    Wire,
)
from acemath_gateway.jobs import CandidateDone, CandidateRejected, CandidateScored, Outcome, SolvedItem, SolveJob
from acemath_gateway.rejection import RejectRules


class CandidateFinishedEvent(Wire):
    """`candidate.finished`: a candidate is complete, its score still to come; `text` only with `candidates="full"`."""

    index: int
    text: str | None = None
    answer: str | None
    finish_reason: FinishReason
    completion_tokens: int
    seconds: float


class CandidateScoredEvent(Wire):
    """`candidate.scored`: the raw score of a candidate."""

    index: int
    score: float
    seconds: float


class CandidateRejectedEvent(Wire):
    """`candidate.rejected`: a candidate was stopped before its end, since the scores of others promised more."""

    index: int
    partial_score: float
    completion_tokens: int
    seconds: float


class Limits(Wire):
    """What this gateway allows beyond the schema.

    Attributes:
        max_problem_chars: of a problem, or of all messages together.
        default_deadline_seconds: when the caller names none.
        max_deadline_seconds: the largest a caller may ask for.
        live_scoring: whether candidates are scored while they are written, as `early_reject` needs it.
        rejection: which candidates `early_reject` stops.
    """

    max_problem_chars: int
    default_deadline_seconds: float
    max_deadline_seconds: float
    live_scoring: bool = True
    rejection: RejectRules = RejectRules()

    def check_text(self, chars: int, param: str) -> None:
        """Raise `InvalidRequest` when the caller's text is too long."""
        if chars > self.max_problem_chars:
            raise InvalidRequest(
                f"{param}: {chars} characters, at most {self.max_problem_chars} are taken; shorten it", param=param
            )

    def deadline(self, seconds: float | None, param: str) -> Deadline:
        """The deadline of a request that asks for `seconds`; raises `InvalidRequest` when that is too long."""
        if seconds is None:
            return Deadline.after(self.default_deadline_seconds)
        if seconds > self.max_deadline_seconds:
            raise InvalidRequest(f"{param}: at most {self.max_deadline_seconds:g} seconds are given", param=param)
        return Deadline.after(seconds)

    def check_early_reject(self, job: SolveJob, param: str) -> None:
        """Raise `InvalidRequest` when `param` asks for early rejection that could never stop a candidate."""
        said = self._why_none_is_stopped(job) if job.early_reject else None
        if said is not None:
            raise InvalidRequest(f"{param}: {said}, or leave it out", param=param)

    def _why_none_is_stopped(self, job: SolveJob) -> str | None:
        after, waves = self.rejection.after_tokens, job.waves
        if not self.live_scoring:
            return "this gateway scores whole candidates only (LIVE_SCORING=false)"
        if job.selection is Selection.MAJORITY:
            return "a majority does not go by scores; choose another selection"
        if job.temperature == 0:
            return "temperature 0 makes one candidate; send a higher one"
        if job.max_tokens <= after:
            return f"candidates are judged at {after} tokens, and max_tokens ends them by then; send more than {after}"
        if job.at_least >= job.n:
            return (
                f"{job.at_least} of {job.n} candidates are wanted in the end, so that none could be stopped; make more"
            )
        if not replace(self.rejection, at_least=job.at_least).may_stop(waves):
            sizes = ", ".join(map(str, waves))
            keep = f"{self.rejection.keep:g} is kept (EARLY_REJECT_KEEP), and {job.at_least} in any case"
            return f"of waves of {sizes} candidates none could be stopped where {keep}; make more"
        return None


def checked_problem(problem: str, limits: Limits) -> str:
    """The problem unchanged; raises `InvalidRequest` when it is blank or too long."""
    limits.check_text(len(problem), "problem")
    if not problem.strip():
        raise InvalidRequest("problem: is blank; write the problem to be solved", param="problem")
    return problem


def job_of(request: SolveRequest, request_id: str, limits: Limits) -> SolveJob:
    """The job that a request asks for.

    Raises:
        InvalidRequest: a blank or too long problem, a deadline beyond the limit, or `early_reject` where there is
            nothing to stop.
    """
    asked = request.deadline_seconds if "deadline_seconds" in request.model_fields_set else None
    job = SolveJob(
        id=request_id,
        turns=({"role": "user", "content": checked_problem(request.problem, limits)},),
        n=request.n,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=random_seed() if request.seed is None else request.seed,
        stop=(),
        selection=request.selection,
        on_scorer_failure=request.on_scorer_failure,
        deadline=limits.deadline(asked, "deadline_seconds"),
        adaptive=request.adaptive,
        early_reject=request.early_reject,
        priority=request.priority,
    )
    limits.check_early_reject(job, "early_reject")
    return job


def batch_job_of(request: SolveRequest, request_id: str, limits: Limits) -> tuple[SolveJob, float]:
    """The job that a line of a file asks for, and the seconds that it has once it has its places.

    Raises:
        InvalidRequest: as `job_of`; or it is to be streamed, or to be more urgent than jobs are.
    """
    if request.stream:
        raise InvalidRequest("stream: nobody listens to a job; leave it out, and follow its events", param="stream")
    if "priority" in request.model_fields_set and request.priority is not Priority.BATCH:
        raise InvalidRequest("priority: jobs are always batch; leave it out", param="priority")
    job = replace(job_of(request, request_id, limits), priority=Priority.BATCH)
    return job, job.deadline.remaining()


def random_seed() -> int:
    """A seed for a caller who named none."""
    return random.SystemRandom().randrange(MAX_SEED + 1)


def finished_event(event: CandidateDone, detail: str) -> CandidateFinishedEvent:
    """The wire form of a finished candidate."""
    return CandidateFinishedEvent(
        index=event.index,
        text=event.text if detail == "full" else None,
        answer=event.answer,
        finish_reason=event.finish_reason,
        completion_tokens=event.completion_tokens,
        seconds=event.seconds,
    )


def rejected_event(event: CandidateRejected) -> CandidateRejectedEvent:
    """The wire form of a candidate that was stopped."""
    return CandidateRejectedEvent(
        index=event.index,
        partial_score=event.partial_score,
        completion_tokens=event.completion_tokens,
        seconds=event.seconds,
    )


def scored_event(event: CandidateScored) -> CandidateScoredEvent:
    """The wire form of a score."""
    return CandidateScoredEvent(index=event.index, score=event.score, seconds=event.seconds)


def solution_of(outcome: Outcome, *, detail: str, queue_seconds: float) -> Solution:
    """The answer to a solve request.

    Args:
        outcome: what became of the job.
        detail: the request's `candidates`: none, scores or full.
        queue_seconds: how long the job waited for its places.
    """
    best = outcome.best
    return Solution(
        id=f"sol_{uuid.uuid4().hex}",
        created=int(time.time()),
        answer=best.answer,
        solution=best.text,
        score=best.score,
        selection=outcome.selection,
        stop_reason=outcome.stop_reason,
        degraded=outcome.degraded_reason is not None,
        degraded_reason=outcome.degraded_reason,
        release=outcome.target.release,
        models=ServedModels(policy=outcome.target.policy, reward=outcome.target.reward),
        n_requested=outcome.n_requested,
        n_generated=outcome.n_generated,
        n_scored=outcome.n_scored,
        n_rejected=outcome.n_rejected,
        candidates=candidates_of(outcome, detail),
        usage=usage_of(outcome, (best,)),
        timings=timings_of(outcome, queue_seconds),
    )


def candidates_of(outcome: Outcome, detail: str) -> list[SolvedCandidate]:
    """The candidates, as much of them as the caller asked for."""
    if detail == "none":
        return []
    return [
        SolvedCandidate(
            index=item.index,
            text=item.text if detail == "full" else None,
            answer=item.answer,
            score=item.score,
            finish_reason=item.finish_reason,
            completion_tokens=item.completion_tokens,
        )
        for item in outcome.candidates
    ]


def usage_of(outcome: Outcome, given: tuple[SolvedItem, ...]) -> Usage:
    """Every generated token, and how many of them are not in the candidates that were `given` to the caller."""
    completion = outcome.completion_tokens
    return Usage(
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=completion,
        total_tokens=outcome.prompt_tokens + completion,
        completion_tokens_details=CompletionTokensDetails(
            rejected_prediction_tokens=completion - sum(item.completion_tokens for item in given)
        ),
    )


def timings_of(outcome: Outcome, queue_seconds: float) -> SolveTimings:
    """Where the time went."""
    timings = outcome.timings
    return SolveTimings(
        queue_seconds=queue_seconds,
        first_candidate_seconds=timings.first_candidate_seconds,
        last_candidate_seconds=timings.last_candidate_seconds,
        last_score_seconds=timings.last_score_seconds,
        select_seconds=timings.select_seconds,
        total_seconds=queue_seconds + timings.total_seconds,
    )
