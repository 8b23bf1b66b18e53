"""`POST /v1/chat/completions`: the same best-of-N in the words of OpenAI's API, whole or as chunks."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from acemath_core.errors import ServiceError
from acemath_gateway.chat_answer import ChatAnswer, ChatCompletion
from acemath_gateway.chat_wire import ELSEWHERE, KNOWN, ChatRequest, chat_job, without_neutral
from acemath_gateway.jobs import SolveJob
from acemath_gateway.keys.access import may_solve
from acemath_gateway.keys.records import payer
from acemath_gateway.routes.body import read_fields, validated
from acemath_gateway.routes.disconnect import unless_gone
from acemath_gateway.routes.facts import note_outcome
from acemath_gateway.routes.once import Answer, idempotency_key
from acemath_gateway.routes.parts import Parts, parts_of
from acemath_gateway.routes.plain import PlainRoute
from acemath_gateway.routes.schema import chat_schema, event_schema, json_body
from acemath_gateway.routes.streams import EventStream, LastEvent, event_bytes
from acemath_gateway.solve_wire import Limits
from acemath_web.context import current_request_id, note_facts
from acemath_web.errors import error_body

_EVENT = event_schema("message", 'a chat.completion.chunk as JSON; {"error": …} in its place; at last [DONE]')


def chat_router(limits: Limits) -> APIRouter:
    """`POST /v1/chat/completions`; the limits are for its schema."""
    router = APIRouter(tags=["chat"], route_class=PlainRoute)

    @router.post(
        "/v1/chat/completions",
        summary="Solve the last turn of a chat",
        openapi_extra=json_body(chat_schema(limits), ChatCompletion, _EVENT),
    )
    async def chat(request: Request) -> Response:
        caller, parts = payer(await may_solve(request)), parts_of(request)
        body = validated(ChatRequest, without_neutral(await read_fields(request, KNOWN, ELSEWHERE)))
        job = chat_job(body, current_request_id() or "", parts.limits)
        note_facts(n=job.n, selection=job.selection, stream=bool(body.stream))
        key = idempotency_key(request, stream=bool(body.stream))
        # Not the request's id, which a caller may choose.
        job = replace(job, caller=caller, share_key=key or os.urandom(16).hex())
        if body.stream:
            return _stream(parts, job, body)
        answer = parts.answer(request, key, body, job.deadline, lambda: _whole(parts, job, body))
        return await unless_gone(request.receive, answer, parts.client_left)

    return router


async def _whole(parts: Parts, job: SolveJob, body: ChatRequest) -> Answer:
    answer = await _answer(parts, job, body)
    completion = answer.completion()
    said = completion.model_dump_json().encode()
    return Answer(said, release=completion.system_fingerprint, whole=answer.whole)


def _stream(parts: Parts, job: SolveJob, body: ChatRequest) -> EventStream:
    return EventStream(
        _events(parts, job, body),
        render_error=_error_chunk,
        on_gone=parts.client_left,
        on_failure=parts.failed_in_stream,
        headers=parts.stream_headers,
    )


async def _events(parts: Parts, job: SolveJob, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    answer = await _answer(parts, job, body)
    for chunk in answer.chunks(include_usage=body.include_usage):
        yield event_bytes(json.dumps(chunk))
    yield LastEvent(event_bytes("[DONE]"))


async def _answer(parts: Parts, job: SolveJob, body: ChatRequest) -> ChatAnswer:
    solved = await parts.service.solve(job)
    note_outcome(solved.outcome)
    return ChatAnswer(solved.outcome, n=body.n or 1, detail=body.acemath.candidates, queue_seconds=solved.queue_seconds)


def _error_chunk(error: ServiceError) -> bytes:
    return event_bytes(error_body(error).model_dump_json())
