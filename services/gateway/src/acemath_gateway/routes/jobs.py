"""`/v1/jobs`: hand over one problem or a file of thousands, follow it, fetch the results, end it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.responses import Response

from acemath_core.errors import ServiceError
from acemath_core.jobs import Job, JobList, JobProgress
from acemath_core.wire import ErrorBody
from acemath_gateway.jobqueue.intake import new_job
from acemath_gateway.jobqueue.reading import changes, job_of_caller, rows
from acemath_gateway.jobqueue.store import Made, StoredJob
from acemath_gateway.jobqueue.views import job_of, progress_of
from acemath_gateway.keys.access import KeyScope, requires
from acemath_gateway.routes.body import JSON_KIND, read_raw
from acemath_gateway.routes.job_parts import JobParts, job_parts
from acemath_gateway.routes.once import idempotency_key
from acemath_gateway.routes.schema import (
    FILE_KINDS,
    WEBHOOK_HEADER,
    event_schema,
    job_schema,
    jobs_schema,
    stream_schema,
)
from acemath_gateway.routes.streams import KEEP_ALIVE, EventStream, LastEvent, event_bytes
from acemath_gateway.solve_wire import Limits
from acemath_web.auth import Caller
from acemath_web.context import note_facts
from acemath_web.errors import error_body
from acemath_web.queries import StrictQueryRoute

_MAX_ROWS = 10_000
_MAX_LISTED = 1000
_EVENT = {
    "oneOf": [event_schema("progress", JobProgress), event_schema("end", Job), event_schema("error", ErrorBody)],
}

Owner = Annotated[Caller, Depends(requires(KeyScope.JOBS))]
JobId = Annotated[str, Path(pattern=r"^job_[0-9a-f]{32}$")]
Offset = Annotated[int, Query(ge=0, le=1_000_000, description="results to leave out: so many as are there already")]
Rows = Annotated[int, Query(ge=1, le=_MAX_ROWS, description="results to give")]
Listed = Annotated[int, Query(ge=1, le=_MAX_LISTED)]
LastEventId = Annotated[
    str | None, Header(alias="last-event-id", pattern=r"^[0-9]{1,9}$", description="the id of the last event that came")
]


def jobs_router(limits: Limits, *, webhooks: bool) -> APIRouter:
    """`/v1/jobs` and what is below it; the limits, and whether there are webhooks, are for its schema."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictQueryRoute)

    @router.post(
        "",
        status_code=202,
        summary="Hand over a problem, or a file of them",
        openapi_extra=jobs_schema(limits, webhooks=webhooks),
    )
    async def submit(request: Request, caller: Owner) -> Response:
        return await _submit(request, caller)

    @router.get("", summary="Your jobs", openapi_extra=job_schema())
    async def listed(request: Request, caller: Owner, limit: Listed = 100) -> JobList:
        return JobList(data=[job_of(one) for one in await job_parts(request).store.of_owner(caller.id, limit)])

    @router.get("/{job_id}", summary="One job as it stands", openapi_extra=job_schema())
    async def one(request: Request, caller: Owner, job_id: JobId) -> Job:
        return job_of(await job_of_caller(job_parts(request).store, caller.id, job_id))

    @router.delete("/{job_id}", summary="End a job; what has a result is kept", openapi_extra=job_schema())
    async def cancel(request: Request, caller: Owner, job_id: JobId) -> Job:
        parts = job_parts(request)
        await job_of_caller(parts.store, caller.id, job_id)
        await parts.store.cancel(job_id)
        parts.look()
        return job_of(await job_of_caller(parts.store, caller.id, job_id))

    _add_streams(router)
    return router


def _add_streams(router: APIRouter) -> None:
    @router.get(
        "/{job_id}/results",
        summary="Results in the order of the file",
        openapi_extra=stream_schema(FILE_KINDS[0]),
        response_class=Response,
    )
    async def results(
        request: Request, caller: Owner, job_id: JobId, offset: Offset = 0, limit: Rows = 1000
    ) -> Response:
        parts = job_parts(request)
        job = await job_of_caller(parts.store, caller.id, job_id)
        return _stream(parts, rows(parts.store, job, offset, limit), lines=True)

    @router.get(
        "/{job_id}/events",
        summary="Progress as server-sent events",
        openapi_extra=stream_schema("text/event-stream", _EVENT),
        response_class=Response,
    )
    async def events(request: Request, caller: Owner, job_id: JobId, last_event_id: LastEventId = None) -> Response:
        parts = job_parts(request)
        return _stream(parts, _events(parts, caller.id, job_id, int(last_event_id or 0)), lines=False)


async def _submit(request: Request, caller: Caller) -> Response:
    parts, key = job_parts(request), idempotency_key(request, stream=False)
    webhook_url = parts.checked_webhook(request.headers.get(WEBHOOK_HEADER))
    kind, raw = await read_raw(request, (JSON_KIND, *FILE_KINDS))
    lines = await (parts.intake.problem(raw) if kind == JSON_KIND else parts.intake.file(raw))
    wanted = new_job(caller.id, lines, key=key, webhook_url=webhook_url)
    made = await parts.store.make(wanted)
    parts.look()
    note_facts(job=wanted.id, lines=len(lines))
    return _accepted(await job_of_caller(parts.store, caller.id, wanted.id), made)


def _accepted(stored: StoredJob, made: Made) -> Response:
    job = job_of(stored)
    headers = {"location": job.links.self} | ({"idempotent-replayed": "true"} if made is Made.KNOWN else {})
    return Response(job.model_dump_json(), status_code=202, headers=headers, media_type="application/json")


async def _events(parts: JobParts, owner: str, job_id: str, known: int) -> AsyncGenerator[bytes, None]:
    async with aclosing(changes(parts.store, owner, job_id, known)) as seen:
        async for position, stored in seen:
            mark = f"id: {position}\n".encode()
            yield mark + event_bytes(progress_of(stored).model_dump_json(), "progress")
    yield LastEvent(mark + event_bytes(job_of(stored).model_dump_json(), "end"))


def _stream(parts: JobParts, pieces: AsyncGenerator[bytes, None], *, lines: bool) -> EventStream:
    return EventStream(
        pieces,
        render_error=_error_line if lines else _error_event,
        on_gone=parts.client_left,
        on_failure=parts.failed_in_stream,
        headers=dict,
        keep_alive=b"" if lines else KEEP_ALIVE,
        media_type=FILE_KINDS[0] if lines else None,
    )


def _error_event(error: ServiceError) -> bytes:
    return event_bytes(error_body(error).model_dump_json(), "error")


def _error_line(error: ServiceError) -> bytes:
    return error_body(error).model_dump_json().encode() + b"\n"
