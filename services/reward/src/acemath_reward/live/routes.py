"""`WS /v1/score/live`.

The client opens a job, hands candidates over in pieces and ends each. When it has what it wants it says so or closes;
either cancels what is left.

    ->  {"type": "open", "messages": […], "model": "name@version" | null, "deadline": seconds | null, "joined": false,
         "request_id": "…" | null}
    ->  {"type": "piece", "index": 0, "text": "…"}    or    {"type": "piece", "index": 0, "token_ids": […]}
    ->  {"type": "peek", "index": 0}
    <-  {"type": "partial", "index": 0, "score": …, "tokens": …}
    ->  {"type": "drop", "index": 0}
    ->  {"type": "end", "index": 0}
    <-  {"type": "score", "index": 0, "score": …, "tokens": …}
    ->  {"type": "done"}
    <-  {"type": "done"}
    <-  {"type": "error", "index": 0 | null, "code": "…", "message": "…", "param": … | null, "retry_after": … | null}

A message may also be a list of frames, which are taken one after the other: `[{…}, {…}]`. The service sends lists only
to a client whose `open` says `"joined": true`.

A peek asks what a candidate were worth if it ended there: the score of what came of it before. One at a time for each
candidate; one that is not answered when its candidate ends is dropped. It changes nothing of the candidate itself.

A drop gives one candidate up, and nothing more is sent of it but what was on its way.

After a done nothing more of that job is sent but the service's own done, and another job may be opened: a handshake
costs both sides more than a job's frames. Between two jobs a connection rests no longer than it may be silent.

An error with an index is one candidate's, which is given up, and the others go on. Without one it is the last frame,
and the connection is closed: 1008 for what the client did, or did not do in time, 1001 when the service stops, 1013
when it is full or not ready, 1011 when it failed. Without the internal key the handshake is answered with 403.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Never, TypeVar

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InternalError, InvalidRequest, ServiceError
from acemath_reward.live.frames import (
    ClientFrame,
    Done,
    Drop,
    End,
    Open,
    Partial,
    Peek,
    Piece,
    ServerFrame,
    message_of,
    read_frames,
)
from acemath_reward.live.service import LiveService
from acemath_reward.live.session import LiveScoring, error_frame
from acemath_reward.metrics import RewardMetrics
from acemath_web.auth import KeySet
from acemath_web.context import request_named

LIVE_PATH = "/v1/score/live"

_T = TypeVar("_T")

_log = logging.getLogger(__name__)
_MOST_JOINED = 64  # so that no message is larger than a client expects
_SEND_SECONDS = 10.0  # a client that does not read so long is gone
_IDLE = "idle_timeout"
_CLOSE = {500: 1011, 503: 1013}
_ENDS = {ErrorCode.DEADLINE_EXCEEDED: "deadline", ErrorCode.DRAINING: "draining", ErrorCode.INTERNAL: "failed"}


class _Idle(InvalidRequest):
    """Nothing came, and nothing was owed, for too long."""


def live_router(service: LiveService, keys: KeySet, idle_seconds: float, metrics: RewardMetrics) -> APIRouter:
    """The route.

    Args:
        service: opens connections.
        keys: who may connect; an empty set admits everybody.
        idle_seconds: how long a connection may neither send nor be owed anything.
        metrics: counts how connections end.
    """
    router = APIRouter()

    @router.websocket(LIVE_PATH)
    async def live(websocket: WebSocket) -> None:
        if not _admitted(websocket, keys):
            await websocket.close(1008)  # before it is accepted: the handshake's answer is 403
            return
        await websocket.accept()
        await _Exchange(websocket, service, idle_seconds, metrics).run()

    return router


def _admitted(websocket: WebSocket, keys: KeySet) -> bool:
    scheme, _, key = websocket.headers.get("authorization", "").partition(" ")
    return not keys or (scheme.lower() == "bearer" and keys.admits(key.strip()))


class _Exchange:
    """One connection from its handshake to its end."""

    def __init__(self, websocket: WebSocket, service: LiveService, idle_seconds: float, metrics: RewardMetrics) -> None:
        self._websocket, self._service, self._idle, self._metrics = websocket, service, idle_seconds, metrics
        self._outgoing: asyncio.Queue[ServerFrame | ServiceError] = asyncio.Queue()
        self._joined = False
        self._begun = asyncio.Event()  # before that a service that stops waits for the opening, to refuse it
        self._rests = False  # between two jobs, so that its end is nobody's

    async def run(self) -> None:
        """Serve the connection; whatever ends it is told to the client and counted."""
        reason = "closed"
        try:
            with suppress(WebSocketDisconnect):  # how most connections end, and nobody is left to be told
                await _first_of(self._serve(), self._stop())
        except ServiceError as error:
            reason = await self._end(error)
        except Exception:
            _log.exception("a live connection failed")
            reason = await self._end(InternalError("the reward service failed on this connection"))
        if not self._rests:
            self._metrics.live_ends.labels(reason).inc()

    async def _serve(self) -> Never:
        frames: list[ClientFrame] = []
        while True:
            opening, frames = await self._opening(frames)
            with request_named(opening.request_id):
                frames = await self._job(opening, frames)
            self._metrics.live_ends.labels("done").inc()
            self._rests, self._outgoing = True, asyncio.Queue()  # what nobody waits for any more
            await self._send(Done())

    async def _job(self, opening: Open, frames: list[ClientFrame]) -> list[ClientFrame]:
        """One job from its opening until its client is done; gives what came in the same message after that."""
        deadline, self._joined = self._service.deadline(opening), opening.joined
        # At most a partial and a score or an error for each candidate, and one for the end: bounded by their number.
        self._outgoing = asyncio.Queue()
        async with self._service.opened(opening, deadline, self._outgoing.put_nowait) as scoring:
            return await _first_of(self._read(scoring, deadline, frames), self._write(scoring))

    async def _opening(self, frames: list[ClientFrame]) -> tuple[Open, list[ClientFrame]]:
        """What opens a job, and what came in the same message; `frames` came before."""
        try:
            async with asyncio.timeout(self._idle):
                first, *more = frames or read_frames(await self._receive())
        except TimeoutError:
            raise _Idle(f"no open came in {self._idle:g} s") from None
        self._rests = False
        self._begun.set()
        if not isinstance(first, Open):
            raise InvalidRequest("the first frame must be open", param="type")
        return first, more

    async def _read(self, scoring: LiveScoring, deadline: Deadline, frames: list[ClientFrame]) -> list[ClientFrame]:
        while True:
            for place, frame in enumerate(frames, 1):
                if isinstance(frame, Done):
                    return frames[place:]
                if isinstance(frame, Open):
                    raise InvalidRequest("a job is opened once; say done before the next", param="type")
                await _taken(scoring, frame)
            text = await self._next(scoring, deadline)
            frames = [] if text is None else read_frames(text)

    async def _next(self, scoring: LiveScoring, deadline: Deadline) -> str | None:
        """The next message; None when it is time to look at the clock again."""
        if deadline.expired():
            raise DeadlineExceeded("the connection's deadline passed")
        quiet = time.monotonic() - scoring.active
        if quiet >= self._idle and not scoring.owes:
            raise _Idle(f"nothing came for {self._idle:g} s")
        wait = self._idle if scoring.owes else self._idle - quiet
        try:
            async with asyncio.timeout(min(wait, deadline.remaining())):
                return await self._receive()
        except TimeoutError:
            return None

    async def _receive(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text: str | None = message.get("text")
        if text is None:
            raise InvalidRequest("frames are JSON in text messages")
        return text

    async def _write(self, scoring: LiveScoring) -> Never:
        while True:
            frames, error = await self._ready()
            for frame in frames:
                if isinstance(frame, Partial):
                    scoring.told(frame.index)
            if frames:
                await self._send(*frames)
            if error is not None:
                raise error

    async def _ready(self) -> tuple[list[ServerFrame], ServiceError | None]:
        """What goes into the next message, and what ends the connection after it, if that is next."""
        frames: list[ServerFrame] = []
        while True:
            frame = await self._outgoing.get()
            if isinstance(frame, ServiceError):
                return frames, frame
            frames.append(frame)
            if not self._joined or self._outgoing.empty() or len(frames) == _MOST_JOINED:
                return frames, None

    async def _stop(self) -> Never:
        await self._begun.wait()
        await self._service.stopping.wait()
        raise self._service.draining()

    async def _end(self, error: ServiceError) -> str:
        """Tell the client what ends the connection; gives the reason as it is counted."""
        idle = isinstance(error, _Idle)
        code = 1001 if error.code is ErrorCode.DRAINING else _CLOSE.get(error.status, 1008)
        with suppress(WebSocketDisconnect, RuntimeError):  # it is gone already
            while not self._outgoing.empty():  # scores that are ready still go out
                frame = self._outgoing.get_nowait()
                if not isinstance(frame, ServiceError):
                    await self._send(frame)
            await self._send(error_frame(error, code=_IDLE if idle else None))
            if self._websocket.application_state is WebSocketState.CONNECTED:
                await self._websocket.close(code)
        return "idle" if idle else _ENDS.get(error.code, "refused")

    async def _send(self, *frames: ServerFrame) -> None:
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._websocket.send_text(message_of(frames))
        except TimeoutError:
            raise WebSocketDisconnect(1006) from None


async def _first_of(*parts: Coroutine[Any, Any, _T]) -> _T:
    """What the first of them gives or raises; the others are cancelled, and over when this returns."""
    running = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return next(part.result() for part in done)
    finally:
        for part in running:
            part.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _taken(scoring: LiveScoring, frame: Piece | End | Peek | Drop) -> None:
    match frame:
        case Piece():
            await scoring.piece(frame)
        case Peek():
            await scoring.peek(frame)
        case End():
            await scoring.end(frame)
        case Drop():
            scoring.drop(frame)
