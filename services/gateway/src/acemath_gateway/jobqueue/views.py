"""What the store knows of a job, in the words of the API."""

from __future__ import annotations

from acemath_core.jobs import Job, JobCounts, JobLinks, JobProgress, JobUsage, JobWebhook, LineResult, LineState
from acemath_gateway.jobqueue.store import StoredJob


def job_of(stored: StoredJob) -> Job:
    """A job as its caller sees it."""
    path = f"/v1/jobs/{stored.id}"
    return Job(
        id=stored.id,
        state=stored.state,
        created=stored.created,
        started=stored.started,
        ended=stored.ended,
        expires=stored.expires,
        counts=counts_of(stored),
        progress=stored.done / stored.total,
        usage=JobUsage(
            prompt_tokens=stored.prompt_tokens,
            completion_tokens=stored.completion_tokens,
            total_tokens=stored.prompt_tokens + stored.completion_tokens,
        ),
        webhook=_webhook_of(stored),
        links=JobLinks(self=path, results=f"{path}/results", events=f"{path}/events"),
    )


def counts_of(stored: StoredJob) -> JobCounts:
    """Its lines by what has become of them."""
    left = stored.total - stored.done
    running = min(stored.running, left)
    return JobCounts(
        total=stored.total,
        queued=0 if stored.state.ended else left - running,
        running=0 if stored.state.ended else running,
        succeeded=stored.succeeded,
        failed=stored.failed,
        cancelled=left if stored.state.ended else 0,
    )


def progress_of(stored: StoredJob) -> JobProgress:
    """An event of its progress, with the finished lines that were read with it."""
    return JobProgress(
        state=stored.state,
        counts=counts_of(stored),
        progress=stored.done / stored.total,
        finished=list(stored.finished),
    )


def cancelled_row(line: int) -> bytes:
    """The row of a line whose job ended before it did."""
    row = LineResult(line=line, state=LineState.CANCELLED, runs=0)
    return row.model_dump_json(include={"line", "state", "runs"}).encode()


def _webhook_of(stored: StoredJob) -> JobWebhook | None:
    if stored.webhook_url is None or stored.webhook_state is None:
        return None
    return JobWebhook(
        url=stored.webhook_url,
        state=stored.webhook_state,
        attempts=stored.webhook_attempts,
        last_problem=stored.webhook_problem,
    )
