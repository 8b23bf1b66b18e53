"""The candidates of one job: made in waves, each scored the moment it ends, until all are there or it is settled.

A job that is not adaptive is one wave. Candidate i is sampled with `seed + i` in whichever wave: a wave that begins at
candidate k is one call with `seed + k`, and vLLM gives the j-th candidate of a call `seed + k + j`.

| what                                         | what follows                                                          |
|----------------------------------------------|-----------------------------------------------------------------------|
| a wave has ended and its scores are there    | the rules of `stopping` are asked; settled: no further wave           |
| the answer cannot change                     | the candidates still being written are cut off; scores are waited for |
| all of a wave have come far (`early_reject`) | those whose partial scores are hopeless are stopped (`checkpoint`)    |
| a wave after the first gives nothing at all  | no further wave; chosen among what is there, as after a broken stream |
| the cutoff passes                            | no further wave                                                       |
| a majority's scores are 10 s late, and there | it is chosen with those that there are                                |
| is no other replica to ask for them          |                                                                       |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, InvalidRequest, ServiceError, Unavailable
from acemath_core.wire import Selection, StopReason
from acemath_gateway.board import Board
from acemath_gateway.checkpoint import Checkpoint
from acemath_gateway.choosing import may_vote
from acemath_gateway.jobs import CandidateDone, SolveJob
from acemath_gateway.looking import Look
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import (
    Candidates,
    PolicyEvent,
    PolicyPort,
    ReleaseTarget,
    Sampling,
    ScoringSession,
    TokensGenerated,
)
from acemath_gateway.rejection import RejectRules
from acemath_gateway.tracing import JobTrace

_log = logging.getLogger(__name__)
_TIE_SECONDS = 10.0  # after the last candidate; a service that works gives a score in less, one that hangs never does


@dataclass(frozen=True, slots=True)
class Means:
    """What every job works with.

    Attributes:
        policy: makes candidates.
        places: candidates being scored at once over all jobs.
        metrics: where everything is counted.
        rejection: which candidates of a job with `early_reject` are stopped.
    """

    policy: PolicyPort
    places: asyncio.Semaphore
    metrics: GatewayMetrics
    rejection: RejectRules


@dataclass
class Gathering:
    """One job's candidates, inside the task group `tasks`, whose end ends all of it.

    Attributes:
        means: what every job works with.
        job: what is asked.
        target: the release.
        prompt: as token ids.
        board: gets the candidates and their scores.
        session: gives the scores.
        cutoff: when generation and scoring end, so that an answer can still be sent.
        look: says whether the answer is settled; None for a job that is not adaptive.
        tasks: what runs for the job.
        trace: is told of all of it.
    """

    means: Means
    job: SolveJob
    target: ReleaseTarget
    prompt: Sequence[int]
    board: Board
    session: ScoringSession
    cutoff: Deadline
    look: Look | None
    tasks: asyncio.TaskGroup
    trace: JobTrace
    _scoring: set[asyncio.Task[None]] = field(default_factory=set)
    _writing: asyncio.Task[None] | None = None
    _checkpoint: Checkpoint | None = None

    async def all(self) -> None:
        """Every wave, until the answer is settled; in the end everything that was finished has been scored, or missed.

        Raises:
            ServiceError: nothing could be had of the policy; or, in the task group, the scorer is away and needed.
        """
        await self._waves()
        await self._scores()

    async def _waves(self) -> None:
        if self.look is None:
            await self._wave(0, self.job.waves[0])
            return
        start = 0
        for size in self.job.waves:
            self._writing = self.tasks.create_task(self._wave(start, size), name=f"write {self.job.id}")
            await asyncio.wait({self._writing})
            if self._writing.cancelled() or not self._goes_on(start):
                return
            await self._scores()
            self.board.settled = self.board.settled or await self.look.between_waves()
            start += size
            if self.board.settled or self._is_late(start):
                return

    async def _scores(self) -> None:
        """Wait for those that are asked for; a majority, for which they only break ties, not for ever.

        Where another replica can be asked, the scorer itself leaves one that hangs, in time and for good.
        """
        if not self._scoring:
            return
        bounded = self.job.selection is Selection.MAJORITY and len(self.target.reward_endpoints) < 2
        _, late = await asyncio.wait(self._scoring, timeout=_TIE_SECONDS if bounded else None)
        for task in late:
            task.cancel()
        missing = [index for index in self.board.answers() if self.board.score_of(index) is None] if late else []
        if missing:
            self.board.misses += [Unavailable("a score came too late to break a tie", retry_after=2.0)] * len(missing)
            _log.warning("%d candidates of a majority were not scored within %g s", len(missing), _TIE_SECONDS)

    def _goes_on(self, start: int) -> bool:
        """Whether there is sense in another wave: the one from candidate `start` gave something."""
        return not self.board.cut and any(index >= start for index in self.board.answers())

    def _is_late(self, start: int) -> bool:
        """Whether the time is over before the wave from candidate `start`, if there is one."""
        self.board.cut = self.board.cut or (start < self.board.wanted and self.cutoff.expired())
        return self.board.cut

    async def _wave(self, start: int, size: int) -> None:
        job, came = self.job, False
        self.board.ask(size)
        sampling = Sampling(size, job.temperature, job.top_p, job.max_tokens, job.seed + start, job.stop)
        try:
            with self.trace.wave(self.target, start, sampling):
                async with self._made(start, sampling) as events:
                    async for event in events:
                        came = True
                        self._take(replace(event, index=event.index + start) if start else event)
        except (Unavailable, DeadlineExceeded) as error:
            if came or not self.board.finished:
                raise
            self.board.cut = self.board.cut or self.cutoff.expired()
            _log.warning("the wave from candidate %d gave nothing: %s", start, error.message)

    @asynccontextmanager
    async def _made(self, start: int, sampling: Sampling) -> AsyncIterator[AsyncGenerator[PolicyEvent, None]]:
        """The events of a wave; where candidates may be stopped, that happens within the block."""
        policy, asked = self.means.policy, (self.target, self.prompt, sampling, self.cutoff)
        if not self.job.early_reject or sampling.n == 1:
            async with aclosing(policy.generate(*asked)) as events:
                yield events
            return
        async with policy.generate_apart(*asked) as candidates, aclosing(candidates.events()) as events:
            with self._watched(candidates, start, sampling.n):
                yield events

    @contextmanager
    def _watched(self, candidates: Candidates, start: int, size: int) -> Iterator[None]:
        """Stop the hopeless candidates of a wave at its checkpoint, if it comes within the block."""

        def reject(index: int, partial_score: float) -> None:
            candidates.stop(index - start)
            self.session.drop(index)
            self.board.reject(index, partial_score)
            self.trace.rejected(index, partial_score)

        rules = replace(self.means.rejection, at_least=max(1, self.job.at_least - self.board.finished))
        wave, scoring = range(start, start + size), lambda: self._scoring
        point = Checkpoint(rules, self.board, self.session, wave, scoring, self.cutoff, reject)
        self._checkpoint = point
        try:
            yield
        finally:
            self._checkpoint = None
            point.leave()

    def _take(self, event: PolicyEvent) -> None:
        if isinstance(event, TokensGenerated):
            if not self.board.has_ended(event.index):  # of one that was stopped they only cost
                self.session.piece(event.index, event.text)
        else:
            self.trace.ended(event)
        done = None if self.board.left_over(event, self.cutoff) else self.board.take(event)
        if done is not None:
            task = self.tasks.create_task(self._score_and_look(done), name=f"score {self.job.id}")
            self._scoring.add(task)
            task.add_done_callback(self._scoring.discard)
        if self._checkpoint is not None:
            self._checkpoint.look(self.tasks)

    async def _score_and_look(self, done: CandidateDone) -> None:
        await self._score(done)
        if self.look is not None and not self.board.settled and await self.look.within_a_wave():
            self.board.settled = StopReason.CANNOT_CHANGE
            if self._writing is not None:
                self._writing.cancel()

    async def _score(self, done: CandidateDone) -> None:
        await self._place()
        board = self.board
        try:
            if not board.scorer_away:
                with self.trace.scoring(self.target, done.index):
                    score = await self.session.score(done.index, done.text)
                self.trace.scored(done.index, score)
                board.give_score(done.index, score)
        except InvalidRequest as error:
            board.refusals.append(error)
            _log.info("a candidate cannot be scored: %s", error.message)
        except ServiceError as error:
            board.misses.append(error)
            board.cut = board.cut or self.cutoff.expired()
            _log.warning("a candidate was not scored: %s", error.message)
            if board.scorer_away and not may_vote(self.job):
                raise
        finally:
            self.means.places.release()

    async def _place(self) -> None:
        if not self.means.places.locked():
            await self.means.places.acquire()  # at once
            return
        with self.means.metrics.scoring_queue.track_inprogress():
            await self.means.places.acquire()
