"""`POST /v1/score` and `GET /v1/slots`.

With `stream=true` the answer is server-sent events: `score` with `{index, score, tokens}` for each candidate as it is
ready, then `done` with `{model, usage, timings}`; or `error` with an error body instead of the rest. What can be said
before the first score has its own status, as without `stream`; the header `x-acemath-model` says who scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from acemath_core.deadline import DEADLINE_HEADER, Deadline
from acemath_core.errors import ErrorCode, ServiceError
from acemath_core.wire import MODEL_HEADER, ScoreItem, ScoreRequest, ScoreResponse, Slot
from acemath_reward.failures import ERRORS
from acemath_reward.scoring import ScoreService, Scoring
from acemath_web.errors import error_body
from acemath_web.queries import StrictQueryRoute

_T = TypeVar("_T")
_KEEP_ALIVE_SECONDS = 15.0
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["score", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": "the scores; with `stream` each as it is ready",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
}


def reward_router(service: ScoreService, slots: Callable[[], list[Slot]], default_deadline_seconds: float) -> APIRouter:
    """The service's own routes.

    Args:
        service: scores.
        slots: gives every version as it is now, at once.
        default_deadline_seconds: for a call without `x-acemath-deadline-ms`.
    """
    router = APIRouter(tags=["reward"], route_class=StrictQueryRoute)

    @router.post(
        "/v1/score", response_model=ScoreResponse, responses=_ANSWERS, summary="Score candidates of one problem"
    )
    async def score(body: ScoreRequest, request: Request) -> Response:
        header = request.headers.get(DEADLINE_HEADER)
        deadline = Deadline.from_header(header, default_seconds=default_deadline_seconds)
        if body.stream:
            return await _streamed(service, body, deadline)
        answer = await unless_gone(request, _collect(service, body, deadline))
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.get("/v1/slots", summary="Every version and where it stands")
    async def get_slots() -> list[Slot]:
        return slots()

    return router


async def _collect(service: ScoreService, body: ScoreRequest, deadline: Deadline) -> ScoreResponse:
    data: list[ScoreItem] = []
    async with service.scoring(body, deadline) as scoring:
        async for items in scoring.items():
            data += items
        data.sort(key=lambda item: item.index)
        return ScoreResponse(model=scoring.model, data=data, usage=scoring.usage, timings=scoring.timings())


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled as soon as the caller closes the connection."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ServiceError("the caller closed the connection", code=ErrorCode.CLIENT_GONE)
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue  # the body has been read; an empty rest of it may still come


async def _streamed(service: ScoreService, body: ScoreRequest, deadline: Deadline) -> Response:
    """Enter the call first, so that a refusal keeps its status; the response owns it from then on."""
    stack = contextlib.AsyncExitStack()
    scoring = await stack.enter_async_context(service.scoring(body, deadline))
    return _ScoreStream(stack, scoring)


class _ScoreStream(StreamingResponse):
    """The events of one call; however the response ends, the call is left."""

    def __init__(self, stack: contextlib.AsyncExitStack, scoring: Scoring) -> None:
        self._stack, self._body = stack, _with_keep_alive(_events(scoring))
        headers = {"cache-control": "no-store", MODEL_HEADER: scoring.model}
        super().__init__(self._body, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; then leave the call."""
        async with self._stack, contextlib.aclosing(self._body):
            await super().__call__(scope, receive, send)


async def _events(scoring: Scoring) -> AsyncGenerator[str, None]:
    try:
        async for items in scoring.items():
            for item in items:
                yield _event("score", item.model_dump_json())
        end = {"model": scoring.model, "usage": scoring.usage.model_dump(), "timings": scoring.timings().model_dump()}
        yield _event("done", json.dumps(end))
    except ServiceError as error:
        yield _event("error", error_body(error).model_dump_json())


async def _with_keep_alive(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, with a comment whenever none came for a while, so that a lost connection is noticed."""
    pending: asyncio.Future[str] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=_KEEP_ALIVE_SECONDS)
            if not done:
                yield ": keep-alive\n\n"
                continue
            finished, pending = pending, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
