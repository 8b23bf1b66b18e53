"""What jobs need from the store that gateways share; `adapters/redis_jobs.py` meets it.

Every method raises `Unavailable` (`jobs_unavailable`) while the store is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from acemath_core.jobs import FinishedLine, JobState, LineState, WebhookState

LINE_RUNS = 3
"""How often a line is worked on at most; then it has failed, with the reason of the last time."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds of the queue.

    Attributes:
        max_stored: jobs kept at once, the ended ones included.
        max_queued_lines: lines without a result, over all jobs.
        max_result_bytes: of the results of one job.
        window_seconds: an unfinished job ends as expired after so long.
        kept_seconds: how long a job is kept after its end.
        idle_seconds: a line whose worker has said nothing for so long goes to another one.
    """

    max_stored: int
    max_queued_lines: int
    max_result_bytes: int
    window_seconds: int
    kept_seconds: int
    idle_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be made.

    Attributes:
        id: its id; the same for the same `Idempotency-Key` of the same caller.
        owner: id of the caller's key.
        fingerprint: digest of what was asked for.
        lines: the bodies of its lines, JSON.
        webhook_url: whom to tell of its end; None for nobody.
    """

    id: str
    owner: str
    fingerprint: str
    lines: Sequence[bytes] = field(repr=False)
    webhook_url: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as the store knows it; times are Unix seconds.

    Attributes:
        running: lines that a worker has now.
        finished: lines with a result, in the order in which they came, as far as they were asked for.
    """

    id: str
    owner: str
    state: JobState
    created: float
    started: float | None
    ended: float | None
    expires: float
    total: int
    succeeded: int
    failed: int
    running: int
    prompt_tokens: int
    completion_tokens: int
    webhook_url: str | None = field(repr=False)
    webhook_state: WebhookState | None
    webhook_attempts: int
    webhook_problem: str | None
    finished: tuple[FinishedLine, ...] = ()

    @property
    def done(self) -> int:
        """Lines that have a result."""
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True)
class TakenLine:
    """A line that this worker has.

    Attributes:
        job: id of its job.
        line: its number, from 1.
        runs: how often it has been taken up, this time included.
        body: the `SolveRequest` as JSON.
        owner: id of the key that asked for the job.
    """

    job: str
    line: int
    runs: int
    body: bytes = field(repr=False)
    owner: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a line: a row of the results, and what is summed up of it."""

    state: LineState
    row: bytes = field(repr=False)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Made(StrEnum):
    """What became of a job that was to be made."""

    MADE = "made"
    KNOWN = "known"  # the same one was made before


class Kept(StrEnum):
    """What became of a result."""

    KEPT = "kept"
    KNOWN = "known"  # the line has one already
    ENDED = "ended"  # the job has ended meanwhile
    FULL = "full"  # the job's results are too large, or the store has no room for more


@dataclass(frozen=True, slots=True)
class Stock:
    """What is in the queue.

    Attributes:
        jobs: by state.
        lines: without a result.
        oldest_seconds: age of the oldest of those; 0 when there are none.
    """

    jobs: dict[JobState, int]
    lines: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Notice:
    """A message that is due: of which job, and the how-manieth attempt this is."""

    job: StoredJob
    attempt: int


class JobStore(Protocol):
    """Keeps jobs for all gateways."""

    async def make(self, job: NewJob) -> Made:
        """Keep a job with all of its lines, or with none.

        Raises:
            Unavailable: (`jobs_full`, with `Retry-After`) the queue is full.
            Conflict: (`idempotency_conflict`) another job has this id.
        """
        ...

    async def read(self, job_id: str, *, after: int = 0, limit: int = 0) -> StoredJob | None:
        """The job, with up to `limit` of its finished lines after the first `after`; None when there is none."""
        ...

    async def of_owner(self, owner: str, limit: int) -> list[StoredJob]:
        """The caller's jobs, the youngest first."""
        ...

    async def results(self, job_id: str, lines: Sequence[int]) -> list[bytes | None]:
        """The rows of these lines; None for a line that has no result."""
        ...

    async def cancel(self, job_id: str) -> None:
        """End the job: lines that nobody has are never taken up, the others stop. An ended job stays as it is."""
        ...

    async def take(self) -> TakenLine | None:
        """Take a line: of each job in turn, first the ones whose worker is gone, then in the order of the file."""
        ...

    async def beat(self) -> list[TakenLine]:
        """Say that this worker still has the lines that it took; gives those that it has no more."""
        ...

    async def finish(self, line: TakenLine, result: Finished) -> Kept:
        """Keep a result; the first one of a line counts."""
        ...

    async def put_back(self, line: TakenLine, *, after_seconds: float, count: bool) -> None:
        """Let any worker take the line after so long (`idle_seconds` at most); `count`: this was one of its runs."""
        ...

    def drop(self, line: TakenLine) -> None:
        """Say no more that this worker has the line: another one takes it once it has been idle for long enough."""
        ...

    async def stock(self) -> Stock:
        """What is in the queue now."""
        ...

    async def due_notice(self, lease_seconds: float) -> Notice | None:
        """A message that is due; nobody else gets it for so long."""
        ...

    async def notice_done(self, job_id: str, problem: str | None, again_seconds: float | None) -> None:
        """What became of it: delivered when there is no problem, tried again after `again_seconds`, or else failed."""
        ...
