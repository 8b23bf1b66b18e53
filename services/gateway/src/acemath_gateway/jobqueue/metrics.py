"""The figures of jobs: what waits, for how long, and what became of the lines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from acemath_core.jobs import JobState
from acemath_gateway.jobqueue.store import Stock


class LineOutcome(StrEnum):
    """How a line left a worker."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    AGAIN = "again"  # put back, to be worked on once more
    POSTPONED = "postponed"  # put back without having been worked on: there was no place, or no release
    STOPPED = "stopped"  # its job had ended, or another worker has it
    UNKEPT = "unkept"  # its result could not be kept in time; it is worked on again


class NoticeOutcome(StrEnum):
    """What became of one attempt to tell of a job's end."""

    DELIVERED = "delivered"
    AGAIN = "again"
    FAILED = "failed"


@dataclass(frozen=True)
class JobMetrics:
    """The instruments; `JobMetrics.on(registry)` makes them.

    Attributes:
        jobs: jobs that are kept, by state; every gateway reports all of them.
        queued_lines: lines without a result, of all jobs.
        oldest_line: age of the oldest of those.
        lines: lines that left this gateway's worker, by outcome.
        running: lines that this gateway works on.
        notices: attempts to deliver a webhook, by outcome.
    """

    jobs: Gauge
    queued_lines: Gauge
    oldest_line: Gauge
    lines: Counter
    running: Gauge
    notices: Counter

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Make every instrument on `registry`, each label set at 0."""
        prefix = "acemath_gateway"
        metrics = cls(
            jobs=Gauge(f"{prefix}_jobs", "jobs that are kept", ("state",), registry=registry),
            queued_lines=Gauge(f"{prefix}_job_queued_lines", "lines without a result", registry=registry),
            oldest_line=Gauge(f"{prefix}_job_oldest_line_seconds", "age of the oldest of them", registry=registry),
            lines=Counter(f"{prefix}_job_lines", "lines that left a worker", ("outcome",), registry=registry),
            running=Gauge(f"{prefix}_job_running_lines", "lines being worked on here", registry=registry),
            notices=Counter(f"{prefix}_job_webhooks", "attempts to deliver a webhook", ("outcome",), registry=registry),
        )
        for state in JobState:
            metrics.jobs.labels(state)
        for outcome in LineOutcome:
            metrics.lines.labels(outcome)
        for attempt in NoticeOutcome:
            metrics.notices.labels(attempt)
        return metrics

    def show(self, stock: Stock) -> None:
        """Report what is in the queue."""
        for state, jobs in stock.jobs.items():
            self.jobs.labels(state).set(jobs)
        self.queued_lines.set(stock.lines)
        self.oldest_line.set(stock.oldest_seconds)
