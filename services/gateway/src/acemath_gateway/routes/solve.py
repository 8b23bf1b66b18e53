"""`POST /v1/solve`: one problem, the best of N solutions; whole, or as named server-sent events while they arise."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from acemath_core.errors import InvalidRequest, ServiceError
from acemath_core.wire import ErrorBody, Solution, SolveRequest
from acemath_gateway.admission import Admitted
from acemath_gateway.jobs import CandidateDone, CandidateRejected, CandidateScored, SolveJob
from acemath_gateway.keys.access import may_solve
from acemath_gateway.keys.records import payer
from acemath_gateway.routes.body import read_fields, validated
from acemath_gateway.routes.disconnect import unless_gone
from acemath_gateway.routes.facts import note_outcome
from acemath_gateway.routes.once import Answer, idempotency_key
from acemath_gateway.routes.parts import Parts, parts_of
from acemath_gateway.routes.plain import PlainRoute
from acemath_gateway.routes.schema import event_schema, json_body, solve_schema
from acemath_gateway.routes.streams import EventStream, LastEvent, event_bytes
from acemath_gateway.solve_wire import (
    CandidateFinishedEvent,
    CandidateRejectedEvent,
    CandidateScoredEvent,
    Limits,
    finished_event,
    job_of,
    rejected_event,
    scored_event,
    solution_of,
)
from acemath_web.context import current_request_id, note_facts
from acemath_web.errors import error_body

_EVENT = {
    "oneOf": [
        event_schema("candidate.finished", CandidateFinishedEvent),
        event_schema("candidate.scored", CandidateScoredEvent),
        event_schema("candidate.rejected", CandidateRejectedEvent),
        event_schema("solution", Solution),
        event_schema("error", ErrorBody),
    ]
}


def solve_router(limits: Limits) -> APIRouter:
    """`POST /v1/solve`; the limits are for its schema."""
    router = APIRouter(tags=["solve"], route_class=PlainRoute)

    @router.post(
        "/v1/solve",
        summary="Solve a problem by best-of-N",
        openapi_extra=json_body(solve_schema(limits), Solution, _EVENT),
    )
    async def solve(request: Request) -> Response:
        caller, parts = payer(await may_solve(request)), parts_of(request)
        body = validated(SolveRequest, await read_fields(request, SolveRequest.model_fields))
        job = job_of(body, current_request_id() or "", parts.limits)
        note_facts(n=job.n, selection=job.selection, stream=body.stream)
        key = idempotency_key(request, stream=body.stream)
        # Not the request's id, which a caller may choose.
        job = replace(job, caller=caller, share_key=key or os.urandom(16).hex())
        if body.stream:
            return _stream(parts, job, body.candidates)
        answer = parts.answer(request, key, body, job.deadline, lambda: _whole(parts, job, body.candidates))
        return await unless_gone(request.receive, answer, parts.client_left)

    return router


async def _whole(parts: Parts, job: SolveJob, detail: str) -> Answer:
    with _in_words_of_solve():
        solved = await parts.service.solve(job)
    solution = solution_of(solved.outcome, detail=detail, queue_seconds=solved.queue_seconds)
    note_outcome(solved.outcome)
    whole = solved.outcome.degraded_reason is None
    return Answer(solution.model_dump_json().encode(), release=solution.release, whole=whole)


def _stream(parts: Parts, job: SolveJob, detail: str) -> EventStream:
    return EventStream(
        _events(parts, job, detail),
        render_error=_error_event,
        on_gone=parts.client_left,
        on_failure=parts.failed_in_stream,
        headers=parts.stream_headers,
    )


async def _events(parts: Parts, job: SolveJob, detail: str) -> AsyncGenerator[bytes, None]:
    queue_seconds = 0.0
    async with aclosing(parts.service.events(job)) as events:
        with _in_words_of_solve():
            async for event in events:
                match event:
                    case Admitted():
                        queue_seconds = event.queue_seconds
                    case CandidateDone():
                        yield event_bytes(finished_event(event, detail).model_dump_json(), "candidate.finished")
                    case CandidateScored():
                        yield event_bytes(scored_event(event).model_dump_json(), "candidate.scored")
                    case CandidateRejected():
                        yield event_bytes(rejected_event(event).model_dump_json(), "candidate.rejected")
                    case _:
                        note_outcome(event)
                        solution = solution_of(event, detail=detail, queue_seconds=queue_seconds)
                        yield LastEvent(event_bytes(solution.model_dump_json(), "solution"))


@contextmanager
def _in_words_of_solve() -> Iterator[None]:
    """The solver speaks of turns; here they are one field."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == "messages":
            error.param = "problem"
        raise


def _error_event(error: ServiceError) -> bytes:
    return event_bytes(error_body(error).model_dump_json(), "error")
