"""What the routes of jobs are given; the application's lifespan puts it at `app.state.jobs`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from acemath_core.errors import ServiceError
from acemath_gateway.jobqueue.intake import Intake
from acemath_gateway.jobqueue.store import JobStore


@dataclass(frozen=True, slots=True)
class JobParts:
    """Jobs as their routes see them.

    Attributes:
        store: where they are kept.
        intake: reads bodies.
        checked_webhook: the URL of a header, or None when there is none; raises `InvalidRequest` for one not allowed.
        look: tells this gateway's worker that there may be something to do.
        client_left: counts a client that closed its connection before its answer.
        failed_in_stream: counts an answer that broke off.
    """

    store: JobStore
    intake: Intake
    checked_webhook: Callable[[str | None], str | None]
    look: Callable[[], None]
    client_left: Callable[[], None]
    failed_in_stream: Callable[[ServiceError], None]


def job_parts(request: Request) -> JobParts:
    """The parts of the application that serves this request."""
    parts = request.app.state.jobs
    assert isinstance(parts, JobParts)
    return parts
