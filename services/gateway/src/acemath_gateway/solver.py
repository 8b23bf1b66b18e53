"""Best-of-N: one lease, one prompt, N candidates, each scored the moment it ends, one choice.

    lease ─► prompt as token ids ─► policy: one streaming call with n=N, or in waves (`gathering`)
                                        │ (n calls, where hopeless candidates are stopped: `checkpoint`)
                                        │ each piece as it comes, each finished candidate
                                        ▼
                                    scorer (bounded concurrency) ─► classes of answers, selection ─► Outcome

What can go wrong, and what comes out:

| what                                        | answer                                                              |
|---------------------------------------------|---------------------------------------------------------------------|
| some candidates fail, or the stream breaks  | chosen among the finished; `policy_failed`, `fewer_candidates`       |
| no candidate finishes                       | 503 `policy_unavailable`                                            |
| some candidates get no score, whyever       | chosen among the others; `partly_scored`, `n_scored` says how many   |
| the scorer fails before it gave any score   | 503 of the scorer; or, where allowed, by majority, `scorer_failed`   |
| the same, and majority was asked            | by majority (scores only break its ties), `scorer_failed`            |
| answers of a vote could not be compared      | as they are; `undecided_answers` when that could change the winner   |
| no candidate can be scored                  | 503 `no_usable_candidate`; or by majority, `scorer_failed`           |
| the same, all of them being too long        | 400 `context_length_exceeded`; or by majority, `scorer_failed`       |
| the deadline comes                          | chosen among what is scored; `deadline`; 504 when nothing is         |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from acemath_core.calibration import Calibration
from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, ServiceError, Unavailable
from acemath_core.prompts import ChatMessage, policy_conversation
from acemath_gateway.board import Board
from acemath_gateway.choosing import Judge, choose, may_vote
from acemath_gateway.gathering import Gathering, Means
from acemath_gateway.jobs import Outcome, SolveEvent, SolveJob
from acemath_gateway.looking import Look
from acemath_gateway.metrics import GatewayMetrics, JobOutcome
from acemath_gateway.ports import PolicyPort, ReleaseTarget, ScorerPort
from acemath_gateway.prompts import Encoders
from acemath_gateway.rejection import RejectRules
from acemath_gateway.release_figures import CountedAs
from acemath_gateway.selection import margin, temperature_of
from acemath_gateway.stopping import CONFIDENCE, StopRules
from acemath_gateway.tracing import JobTrace, NoTraces, Traces

_RESERVE_SECONDS = 1.0
_RESERVE_SHARE = 0.1
_ANSWERED = (JobOutcome.OK, JobOutcome.DEGRADED)


def _nobody(_: object) -> None:
    """Who needs to be told nothing."""


class Leases(Protocol):
    """Gives the release that a job works with."""

    def lease(self, key: str, deadline: Deadline) -> AbstractAsyncContextManager[ReleaseTarget]:
        """Hold a release for the length of the block; the same key gets the same one, as long as it can be had.

        While a replica makes room for the next release, this waits inside the deadline.

        Raises:
            Unavailable: (`not_ready`, `policy_unavailable`) there is none to give.
        """
        ...

    def counted_as(self, target: ReleaseTarget) -> CountedAs:
        """What a release that was leased is now, for the figures of a job that ends."""
        ...


class Solver:
    """Solves jobs; one for a process, shared by all requests.

    Args:
        policy: makes candidates.
        scorer: scores them.
        judge: compares answers; needed by votes only.
        releases: gives each job its release.
        encoders: prompts by policy version.
        metrics: where everything is counted.
        max_scoring: candidates being scored at once over all jobs; others wait their turn.
        calibration: of the scores of one reward version; others go without.
        confidence: with which an adaptive job bets that its answer is settled.
        rejection: which candidates a job with `early_reject` stops; `RejectRules()` when None.
        traces: is told what becomes of jobs.
        lengths: gets a job's tokens when it is over: of its prompt, of its candidates as of `Board.lengths`.
    """

    def __init__(
        self,
        *,
        policy: PolicyPort,
        scorer: ScorerPort,
        judge: Judge,
        releases: Leases,
        encoders: Encoders,
        metrics: GatewayMetrics,
        max_scoring: int = 256,
        calibration: Calibration | None = None,
        confidence: float = CONFIDENCE,
        rejection: RejectRules | None = None,
        traces: Traces | None = None,
        lengths: Callable[[int, Sequence[int], Sequence[int]], object] = lambda prompt, whole, broken_off: None,
    ) -> None:
        self._means = Means(policy, asyncio.Semaphore(max_scoring), metrics, rejection or RejectRules())
        self._scorer, self._judge, self._releases = scorer, judge, releases
        self._encoders, self._metrics = encoders, metrics
        self._calibration, self._confidence = calibration, confidence
        self._traces, self._lengths = traces or NoTraces(), lengths

    async def run(self, job: SolveJob, spent: Callable[[int], object] = _nobody) -> AsyncGenerator[SolveEvent, None]:
        """Events as they happen and, last, the `Outcome`; `spent` as of `outcome`.

        Closing the generator cancels generation and queued scoring, and returns when nothing of the job is left.

        Raises:
            InvalidRequest: the problem does not fit the model, or the policy refused it.
            Unavailable: not ready, or policy or scorer failed in a way that leaves no answer.
            DeadlineExceeded: the deadline came before anything could be chosen from.
        """
        # Never more than two events for each candidate, the outcome, and the end: putting never waits.
        events: asyncio.Queue[SolveEvent | None] = asyncio.Queue(maxsize=2 * job.n + 2)
        work = asyncio.create_task(self.outcome(job, events.put_nowait, spent), name=f"solve {job.id}")
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await work
        finally:
            await _end(work)

    async def outcome(
        self,
        job: SolveJob,
        emit: Callable[[SolveEvent], object] = _nobody,
        spent: Callable[[int], object] = _nobody,
    ) -> Outcome:
        """What `run` ends with, for who needs the events at most in passing; cancelling returns as closing does.

        Args:
            job: what is asked.
            emit: gets each event, the outcome included, when it happens.
            spent: gets the tokens that were generated, however this ends.

        Raises:
            InvalidRequest, Unavailable, DeadlineExceeded: as `run`.
        """
        became, metrics = JobOutcome.CANCELLED, self._metrics
        board = Board(sum(job.waves), emit)
        try:
            with metrics.inflight_requests.track_inprogress(), self._traces.job(job) as trace:
                outcome = await self._solve(job, board, trace)
                trace.chosen(outcome)
            became = JobOutcome.OK if outcome.degraded_reason is None else JobOutcome.DEGRADED
            self._record(outcome)
            emit(outcome)
            return outcome
        except InvalidRequest:
            became = JobOutcome.REFUSED
            raise
        except DeadlineExceeded:
            became = JobOutcome.DEADLINE
            raise
        except Exception:
            became = JobOutcome.FAILED
            raise
        finally:
            spent(board.tokens)
            board.record(metrics)
            self._lengths(board.prompt_tokens, *board.lengths())
            metrics.requests.labels(became, job.selection).inc()
            seconds = time.monotonic() - job.asked
            metrics.duration.labels(became).observe(seconds)
            if board.target is not None:
                counted = self._releases.counted_as(board.target)
                metrics.releases.ended(counted, became, seconds, answered=became in _ANSWERED)

    async def _solve(self, job: SolveJob, board: Board, trace: JobTrace) -> Outcome:
        async with self._releases.lease(job.share_key or job.id, job.deadline) as target:
            board.target = target
            self._refuse_hopeless(job, target)
            prompt = await self._prompt(job, target)
            board.prepared(len(prompt))
            self._metrics.inflight_sequences.inc(max(job.waves))
            try:
                await self._gather(job, target, prompt, board, trace)
            finally:
                self._metrics.inflight_sequences.dec(max(job.waves))
            temperature = temperature_of(self._calibration_of(target))
            return await choose(job, target, len(prompt), board, self._judge, temperature)

    def _calibration_of(self, target: ReleaseTarget) -> Calibration | None:
        """What is known of the scores of this release; another version's logits have another scale."""
        known = self._calibration
        return known if known is not None and known.reward == target.reward else None

    def _refuse_hopeless(self, job: SolveJob, target: ReleaseTarget) -> None:
        """Nothing is generated for an answer that could not be chosen."""
        if not target.reward_endpoints and not may_vote(job):
            raise Unavailable(
                "no reward service answers; try again shortly", code=ErrorCode.REWARD_UNAVAILABLE, retry_after=2.0
            )

    async def _prompt(self, job: SolveJob, target: ReleaseTarget) -> list[int]:
        try:
            async with asyncio.timeout(job.deadline.remaining()):
                prompts = await self._encoders.of(target.policy)
                ids = await prompts.encode(policy_conversation(job.turns))
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the deadline passed before the prompt was ready; send a larger deadline_seconds", should_retry=False
            ) from error
        limit = min(prompts.max_length, target.context_length or prompts.max_length)
        if len(ids) + job.max_tokens > limit:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and max_tokens is {job.max_tokens}, {len(ids) + job.max_tokens} "
                f"together; the model takes {limit}: shorten the problem or lower max_tokens",
                param="max_tokens" if len(ids) < limit else "messages",
                code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            )
        return ids

    async def _gather(
        self, job: SolveJob, target: ReleaseTarget, prompt: list[int], board: Board, trace: JobTrace
    ) -> None:
        """Generate and score until all is done or the time for it is over; then nothing of either still runs."""
        reserve = min(_RESERVE_SECONDS, _RESERVE_SHARE * job.deadline.remaining())
        # The ports end by themselves and say what they waited for; cancelling is for one that does not.
        cutoff, at_the_latest = job.deadline.earlier(reserve), job.deadline.earlier(reserve / 2)
        try:
            async with (
                asyncio.timeout(at_the_latest.remaining()),
                self._scorer.session(target, _scored_turns(job), cutoff) as session,
                asyncio.TaskGroup() as tasks,
            ):
                look = self._look(job, target, board, cutoff)
                await Gathering(self._means, job, target, prompt, board, session, cutoff, look, tasks, trace).all()
        except TimeoutError:
            board.cut = True
        except BaseExceptionGroup as group:
            raise _first(group) from group

    def _look(self, job: SolveJob, target: ReleaseTarget, board: Board, cutoff: Deadline) -> Look | None:
        if not job.adaptive:
            return None
        rules = StopRules(self._confidence, self._calibration_of(target), job.at_least)
        return Look(job, board, self._judge, rules, cutoff)

    def _record(self, outcome: Outcome) -> None:
        timings, metrics = outcome.timings, self._metrics
        metrics.overhead.observe(timings.prepare_seconds + timings.select_seconds)
        metrics.rejected_tokens.inc(outcome.completion_tokens - outcome.best.completion_tokens)
        metrics.undecided.inc(outcome.undecided)
        if outcome.degraded_reason is not None:
            metrics.degraded.labels(outcome.degraded_reason).inc()
        gap = margin(outcome.candidates)
        if gap is not None:
            metrics.score_margin.observe(gap)
        scores = [item.score for item in outcome.candidates if item.score is not None]
        metrics.releases.answered(self._releases.counted_as(outcome.target), scores, gap, outcome.agreement)


def _scored_turns(job: SolveJob) -> list[ChatMessage]:
    """The turns that the reward model sees: it has a system text of its own."""
    return [turn for turn in job.turns if turn["role"] != "system"]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of a group, which cancelled the others; a bug of ours goes before a declared error."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            flat.append(error)
    return next((error for error in flat if not isinstance(error, ServiceError)), flat[0])


async def _end(work: asyncio.Task[Outcome]) -> None:
    """Cancel a task and wait until it is over; its error, if it has one, has been raised to the reader."""
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()
