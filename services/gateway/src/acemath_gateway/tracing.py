"""What the solver tells of a job while it works; `adapters/otel` makes spans of it, `NoTraces` nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from acemath_gateway.jobs import Outcome, SolveJob
from acemath_gateway.ports import CandidateFailed, CandidateFinished, ReleaseTarget, Sampling


class JobTrace(Protocol):
    """The trace of one job. Nothing here waits, and nothing is told of what texts say."""

    def wave(self, target: ReleaseTarget, start: int, sampling: Sampling) -> AbstractContextManager[None]:
        """Candidates from `start` on are made in the block; calls in it belong to that."""
        ...

    def ended(self, event: CandidateFinished | CandidateFailed) -> None:
        """The policy has done with a candidate."""
        ...

    def scoring(self, target: ReleaseTarget, index: int) -> AbstractContextManager[None]:
        """Candidate `index` is scored in the block; calls in it belong to that."""
        ...

    def scored(self, index: int, score: float) -> None:
        """That is its score."""
        ...

    def rejected(self, index: int, partial_score: float) -> None:
        """Candidate `index` was stopped with that partial score."""
        ...

    def chosen(self, outcome: Outcome) -> None:
        """The job has its answer."""
        ...


class Traces(Protocol):
    """Makes the traces."""

    def job(self, job: SolveJob) -> AbstractContextManager[JobTrace]:
        """The job is worked on in the block, in one task and those that begin in it."""
        ...


class NoTraces:
    """Both, where no traces are wanted."""

    def job(self, job: SolveJob) -> AbstractContextManager[JobTrace]:
        """See `Traces`."""
        return nullcontext(self)

    def wave(self, target: ReleaseTarget, start: int, sampling: Sampling) -> AbstractContextManager[None]:
        """See `JobTrace`."""
        return nullcontext()

    def ended(self, event: CandidateFinished | CandidateFailed) -> None:
        """See `JobTrace`."""

    def scoring(self, target: ReleaseTarget, index: int) -> AbstractContextManager[None]:
        """See `JobTrace`."""
        return nullcontext()

    def scored(self, index: int, score: float) -> None:
        """See `JobTrace`."""

    def rejected(self, index: int, partial_score: float) -> None:
        """See `JobTrace`."""

    def chosen(self, outcome: Outcome) -> None:
        """See `JobTrace`."""
