"""A stand-in for the reward service: its wire, without a model.

    fake = FakeReward()                         # in a test: httpx.AsyncClient(transport=ASGITransport(fake.app)) …
    python tests/doubles/fake_reward.py --port 8201 --model r@s0-0123456789ab      # … or as a process

`POST /v1/score` (plain and `stream=true`), `WS /v1/score/live` (in `fake_live`), `GET /v1/slots`, `/livez`, `/readyz`,
`/health`, `/metrics`.
`tests/reward/test_contract.py` runs one suite on this and on the real service, so what both do is what is written
there. A score is a fixed function of the candidate alone (`score_of`), unless a test puts another into `score`.

What a test may set, at any time: `score`, `delay_seconds` (before each score), `failure` (a `ServiceError` that is
answered instead), `failing_candidates` (a failure of single candidates: the whole call fails, as in the service),
`break_after` (the connection breaks after so many scores of a stream), `gate` (an event that every call waits for),
`slots`. What a test may read: `requests`, `deadlines` (milliseconds, as sent), `request_ids`, `cancelled`, `expired`
(calls that were ended by their own deadline).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from acemath_core.deadline import DEADLINE_HEADER, Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, InvalidRequest, ServiceError
from acemath_core.wire import (
    MODEL_HEADER,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    ScoreTimings,
    ScoreUsage,
    Slot,
    SlotState,
    TokenCandidate,
)
from acemath_web.auth import BearerMiddleware, KeySet
from acemath_web.context import RequestIdMiddleware, current_request_id
from acemath_web.errors import error_body, error_response, from_validation
from acemath_web.limits import BodyLimitMiddleware
from doubles.fake_live import FakeLive

MODEL = "acemath-embedded-reward@s0-0123456789ab"
SERVING = (SlotState.READY, SlotState.ACTIVE, SlotState.DRAINING)
Candidate = str | TokenCandidate


def score_of(candidate: Candidate) -> float:
    """A number in [-4, 4) that depends on the candidate only: the same text has the same score everywhere."""
    text = candidate if isinstance(candidate, str) else " ".join(map(str, candidate.token_ids))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:3], "big") / 2**21 - 4.0  # fits float32


class FakeReward:
    """The double; `app` is its ASGI application.

    Args:
        model: the `name@version` that it serves.
        max_tokens: a longer conversation (in words, or ids) is `context_length_exceeded`.
        key: the internal bearer key it asks for; None admits everybody.
    """

    def __init__(self, model: str = MODEL, *, max_tokens: int = 2048, key: str | None = None) -> None:
        self.slots = [Slot(version=model, state=SlotState.ACTIVE, since=time.time())]
        self.max_tokens = max_tokens
        self.score: Callable[[Candidate], float] = score_of
        self.delay_seconds = 0.0
        self.failure: ServiceError | None = None
        self.failing_candidates: Collection[str] = ()
        self.break_after: int | None = None
        self.gate: asyncio.Event | None = None
        self.requests: list[ScoreRequest] = []
        self.deadlines: list[str | None] = []
        self.request_ids: list[str | None] = []
        self.cancelled = self.expired = 0
        self.live = FakeLive(self)
        self.app = self._build(KeySet([SecretStr(key)] if key else []))

    def _build(self, keys: KeySet) -> ASGIApp:
        routes = [
            Route("/v1/score", self._score, methods=["POST"]),
            WebSocketRoute("/v1/score/live", self.live.serve),
            Route("/v1/slots", self._slots),
            Route("/livez", self._ok),
            Route("/readyz", self._ready),
            Route("/health", self._ready),
            Route("/metrics", self._ok),
        ]
        app = Starlette(routes=routes, exception_handlers={ServiceError: self._on_error})
        return RequestIdMiddleware(BearerMiddleware(BodyLimitMiddleware(app, 8 * 2**20), keys))

    async def _on_error(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return error_response(error)

    async def _ok(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _ready(self, _: Request) -> Response:
        ready = any(slot.state is SlotState.ACTIVE for slot in self.slots)
        return JSONResponse({"ready": ready, "reason": "" if ready else "no version is active"}, 200 if ready else 503)

    async def _slots(self, _: Request) -> Response:
        return JSONResponse([slot.model_dump(mode="json") for slot in self.slots])

    async def _score(self, request: Request) -> Response:
        body = await _parse(request)
        deadline = Deadline.from_header(request.headers.get(DEADLINE_HEADER), default_seconds=120.0)
        self.requests.append(body)
        self.deadlines.append(request.headers.get(DEADLINE_HEADER))
        self.request_ids.append(current_request_id())
        if self.failure is not None:
            raise self.failure
        model, lengths = self.check(body)
        if body.stream:
            events, headers = self._events(body, model, lengths, deadline), {MODEL_HEADER: model}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        gone = asyncio.ensure_future(_disconnected(request))
        work = asyncio.ensure_future(self._all(body, model, lengths, deadline))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.cancelled += 1
                raise ServiceError("the caller closed the connection", code=ErrorCode.CLIENT_GONE)
            return JSONResponse(work.result().model_dump(mode="json"))
        finally:
            gone.cancel()
            work.cancel()

    async def _all(self, body: ScoreRequest, model: str, lengths: list[int], deadline: Deadline) -> ScoreResponse:
        data = [item async for item in self._items(body, lengths, deadline)]
        usage, timings = self._summary(body, lengths)
        return ScoreResponse(model=model, data=data, usage=usage, timings=timings)

    async def _events(
        self, body: ScoreRequest, model: str, lengths: list[int], deadline: Deadline
    ) -> AsyncIterator[str]:
        sent = 0
        try:
            async for item in self._items(body, lengths, deadline):
                yield _event("score", item.model_dump(mode="json"))
                sent += 1
                if self.break_after is not None and sent >= self.break_after:
                    raise ConnectionResetError("the double was told to break here")
            usage, timings = self._summary(body, lengths)
            yield _event("done", {"model": model, "usage": usage.model_dump(), "timings": timings.model_dump()})
        except ServiceError as error:
            yield _event("error", error_body(error).model_dump())
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def _items(self, body: ScoreRequest, lengths: list[int], deadline: Deadline) -> AsyncIterator[ScoreItem]:
        await self._within(deadline, self.gate.wait() if self.gate else asyncio.sleep(0))
        for index, candidate in enumerate(body.candidates):
            await self._within(deadline, asyncio.sleep(self.delay_seconds))
            if isinstance(candidate, str) and candidate in self.failing_candidates:
                raise ServiceError("this batch failed; try again")
            yield ScoreItem(index=index, score=self.score(candidate), tokens=lengths[index])

    async def _within(self, deadline: Deadline, waiting: Any) -> None:
        try:
            await asyncio.wait_for(waiting, deadline.remaining())
        except TimeoutError as error:
            self.expired += 1
            raise DeadlineExceeded("the request's deadline passed before its candidates were scored") from error

    @property
    def posted(self) -> int:
        """Candidates that came with a POST."""
        return sum(len(request.candidates) for request in self.requests)

    def check(self, body: ScoreRequest) -> tuple[str, list[int]]:
        """The version that scores a request and its candidates' lengths; raises what refuses it."""
        return self._model(body.model), self._lengths(body)

    async def scored(self, body: ScoreRequest, deadline: Deadline) -> ScoreItem:
        """The first candidate's score, when it is time for it."""
        return await anext(self._items(body, self._lengths(body), deadline))

    def _model(self, wanted: str | None) -> str:
        served = [slot.version for slot in self.slots if slot.state in SERVING]
        active = [slot.version for slot in self.slots if slot.state is SlotState.ACTIVE]
        if wanted is None and active:
            return active[0]
        if wanted not in served:
            message = f"{wanted} is not served here; served: {', '.join(served) or 'nothing yet'}"
            raise Conflict(message, param="model", code=ErrorCode.MODEL_NOT_SERVED)
        return wanted

    def _lengths(self, body: ScoreRequest) -> list[int]:
        context = _context_words(body)
        lengths = [context + _words(candidate) for candidate in body.candidates]
        for index, length in enumerate(lengths):
            if length > self.max_tokens:
                raise InvalidRequest(
                    f"candidates.{index} has {length} tokens with its problem; the model takes {self.max_tokens}",
                    param=f"candidates.{index}",
                    code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                )
        return lengths

    def _summary(self, body: ScoreRequest, lengths: list[int]) -> tuple[ScoreUsage, ScoreTimings]:
        context, candidates = _context_words(body), sum(map(_words, body.candidates))
        usage = ScoreUsage(prompt_tokens=context, candidate_tokens=candidates, total_tokens=context + candidates)
        spent = self.delay_seconds * len(lengths)
        return usage, ScoreTimings(tokenize_seconds=0, queue_seconds=0, compute_seconds=spent, total_seconds=spent)


async def _parse(request: Request) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise from_validation(error.errors()) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is not valid JSON; send UTF-8 JSON") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _context_words(body: ScoreRequest) -> int:
    texts = [body.problem or ""] if body.messages is None else [turn.content for turn in body.messages]
    return sum(len(text.split()) for text in texts)


def _words(candidate: Candidate) -> int:
    return len(candidate.split()) if isinstance(candidate, str) else len(candidate.token_ids)


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description="the reward service's double as a process")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--key")
    options = parser.parse_args()
    uvicorn.run(
        FakeReward(options.model, key=options.key).app, host=options.host, port=options.port, log_level="warning"
    )


if __name__ == "__main__":
    main()
