"""What a caller asks the solver for, the events that it sees meanwhile, and what comes out.

    SolveJob ──► Solver.run ──► CandidateDone*  CandidateScored*  CandidateRejected*  Outcome
                                (as they happen, interleaved)                         (once, last)

Nothing here knows HTTP: the routes make a `SolveJob` from a request, and a `Solution` or chat completion from an
`Outcome`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from acemath_core.deadline import Deadline
from acemath_core.prompts import ChatMessage
from acemath_core.wire import DegradedReason, FinishReason, Priority, Selection, StopReason
from acemath_gateway.keys.records import KeyCaller
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.stopping import FIRST_WAVE, wave_sizes


@dataclass(frozen=True, slots=True)
class SolveJob:
    """One problem to solve by best-of-N.

    Attributes:
        id: the request's id, as in logs and in the sequence limit.
        turns: the caller's turns, unchanged and without our system text; the last one is the user's problem.
        n: candidates wanted; temperature 0 makes one all the same.
        temperature: 0 is greedy.
        top_p: nucleus mass, above 0 and at most 1.
        max_tokens: bound on each candidate's length.
        seed: candidate i is sampled with `seed + i`.
        stop: texts that end a candidate.
        selection: how the answer is chosen.
        on_scorer_failure: raise, or choose by majority and say so.
        deadline: when an answer must have left; the best so far is given then.
        adaptive: make candidates in waves, and no more than settle the answer.
        at_least: candidates that are made in any case, because the caller wants to see as many.
        early_reject: stop the candidates whose partial scores are hopeless.
        priority: whom it lets pass at the door.
        asked: when the request came, on `time.monotonic()`.
        caller: whose quotas it is charged to; None for nobody's.
        share_key: what says whether it is of a canary's share; None for its id, where that is ours (a stored job's).
    """

    id: str
    turns: tuple[ChatMessage, ...]
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    selection: Selection
    on_scorer_failure: Literal["error", "majority"]
    deadline: Deadline
    adaptive: bool = False
    at_least: int = 1
    early_reject: bool = False
    priority: Priority = Priority.DEFAULT
    asked: float = field(default_factory=time.monotonic)
    caller: KeyCaller | None = None
    share_key: str | None = None

    @property
    def waves(self) -> list[int]:
        """Candidates of each wave; temperature 0 makes one, whatever n is."""
        if self.temperature == 0:
            return [1]
        return wave_sizes(self.n, max(FIRST_WAVE, self.at_least)) if self.adaptive else [self.n]


@dataclass(frozen=True, slots=True)
class CandidateDone:
    """Candidate `index` is complete; its score is still to come.

    Attributes:
        index: the candidate's place, 0 to n-1.
        text: the whole solution text.
        answer: its final answer as written, or None when it gives none.
        finish_reason: how it ended.
        completion_tokens: tokens generated for it.
        seconds: since the job began.
    """

    index: int
    text: str
    answer: str | None
    finish_reason: FinishReason
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CandidateScored:
    """The scorer's verdict on candidate `index`.

    Attributes:
        index: the candidate's place.
        score: the raw logit; comparable within one problem only.
        seconds: since the job began.
    """

    index: int
    score: float
    seconds: float


@dataclass(frozen=True, slots=True)
class CandidateRejected:
    """Candidate `index` was stopped, since others promised more; nothing more comes of it.

    Attributes:
        index: the candidate's place.
        partial_score: the raw logit of its text so far, taken as a whole one.
        completion_tokens: tokens generated for it, as far as they had come.
        seconds: since the job began.
    """

    index: int
    partial_score: float
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SolvedItem:
    """One finished candidate in an outcome.

    Attributes:
        index: the candidate's place; the gaps are candidates that failed or were stopped.
        text: the whole solution text.
        answer: its final answer as written, or None.
        score: the raw logit, or None when it could not be scored.
        answer_class: candidates with equivalent answers share it; None without an answer, and when the selection
            did not need classes.
        finish_reason: how it ended.
        completion_tokens: tokens generated for it.
    """

    index: int
    text: str
    answer: str | None
    score: float | None
    answer_class: int | None
    finish_reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds since the job began; None for what never happened.

    Attributes:
        prepare_seconds: until the prompt was handed to the policy.
        first_candidate_seconds: the first candidate was complete.
        last_candidate_seconds: the last one was.
        last_score_seconds: the last score had come.
        select_seconds: duration of comparing answers and choosing.
        total_seconds: the whole job.
    """

    prepare_seconds: float
    first_candidate_seconds: float | None
    last_candidate_seconds: float | None
    last_score_seconds: float | None
    select_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        target: the release that made every part of it.
        candidates: the finished ones, ordered by index; never empty.
        chosen: position in `candidates` (not the candidate's index) of the answer.
        selection: how it was really chosen; "majority" when the scorer failed and the caller allowed that.
        stop_reason: why no more candidates were made.
        degraded_reason: why this is less than was asked for, if it is.
        undecided: comparisons of answers without a verdict that could have changed a vote.
        prompt_tokens: tokens of the prompt, counted once.
        discarded_tokens: tokens seen of candidates that did not finish; they cost, and no text of them is given.
        n_requested: candidates the caller asked for.
        n_generated: candidates that finished.
        n_scored: candidates that have a score.
        n_rejected: candidates that were stopped, since others promised more.
        timings: where the time went.
    """

    target: ReleaseTarget
    candidates: tuple[SolvedItem, ...]
    chosen: int
    selection: Selection
    stop_reason: StopReason
    degraded_reason: DegradedReason | None
    undecided: int
    prompt_tokens: int
    discarded_tokens: int
    n_requested: int
    n_generated: int
    n_scored: int
    n_rejected: int
    timings: Timings

    @property
    def best(self) -> SolvedItem:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def ranked(self) -> tuple[SolvedItem, ...]:
        """The chosen candidate first, then the others by falling score; unscored ones last, ties by index."""
        rest = [item for place, item in enumerate(self.candidates) if place != self.chosen]
        rest.sort(key=lambda item: (item.score is None, -(item.score or 0.0), item.index))
        return (self.best, *rest)

    @property
    def agreement(self) -> float | None:
        """Share of the candidates with the chosen answer, as written; None without an answer, or with one candidate."""
        chosen, size = self.best.answer, len(self.candidates)
        if chosen is None or size < 2:
            return None
        return sum(item.answer == chosen for item in self.candidates) / size

    @property
    def completion_tokens(self) -> int:
        """Every token that was generated for this job, whether it was used or not."""
        return sum(item.completion_tokens for item in self.candidates) + self.discarded_tokens


SolveEvent = CandidateDone | CandidateScored | CandidateRejected | Outcome
