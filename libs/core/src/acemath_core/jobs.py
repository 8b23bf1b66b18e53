"""The bodies of `/v1/jobs`: many problems worked on while nobody waits, and what has become of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from acemath_core.wire import ErrorInfo, Solution, Wire


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # none of its lines has been taken up yet
    RUNNING = "running"
    COMPLETED = "completed"  # every line has its result, and at least one succeeded
    FAILED = "failed"  # every line has its result, and none succeeded
    CANCELLED = "cancelled"  # by its caller; what had a result by then is kept
    EXPIRED = "expired"  # its time ran out; what had a result by then is kept

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class LineState(StrEnum):
    """What became of a line."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # its job ended before it did


class WebhookState(StrEnum):
    """Where the message that tells of a job's end stands."""

    WAITING = "waiting"  # the job has not ended
    PENDING = "pending"  # to be sent, or to be sent again
    DELIVERED = "delivered"
    FAILED = "failed"  # given up after the last attempt


class JobCounts(Wire):
    """The lines of a job; all but `total` add up to it."""

    total: int
    queued: int = Field(description="to be taken up, for the first time or again")
    running: int
    succeeded: int
    failed: int
    cancelled: int


class JobUsage(Wire):
    """Tokens of all lines that succeeded."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class JobWebhook(Wire):
    """The message at the job's end, and what became of it."""

    url: str
    state: WebhookState
    attempts: int
    last_problem: str | None = Field(description="why the last attempt was none that counts; null before and after")


class JobLinks(Wire):
    """Where to look, as paths of this gateway."""

    self: str
    results: str
    events: str


class Job(Wire):
    """A job as it stands; times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    state: JobState
    created: float
    started: float | None = Field(description="when the first line was taken up")
    ended: float | None
    expires: float = Field(description="unfinished: when it ends as expired; ended: when it is forgotten")
    counts: JobCounts
    progress: float = Field(description="part of the lines that have a result, 0 to 1")
    usage: JobUsage
    webhook: JobWebhook | None
    links: JobLinks


class JobList(Wire):
    """`GET /v1/jobs`: the caller's jobs, the youngest first."""

    object: Literal["list"] = "list"
    data: list[Job]


class LineResult(Wire):
    """One line of `GET /v1/jobs/{id}/results`."""

    line: int = Field(ge=1, description="the line of the file, from 1")
    state: LineState
    runs: int = Field(ge=0, description="how often it was worked on")
    solution: Solution | None = None
    error: ErrorInfo | None = None


class FinishedLine(Wire):
    """A line that has its result, as events tell of it."""

    line: int
    state: LineState


class JobProgress(Wire):
    """The event `progress`; its id is how many lines have a result, and `finished` those since the event before it."""

    state: JobState
    counts: JobCounts
    progress: float
    finished: list[FinishedLine]
