"""`WS /v1/score/live` of the reward service's double; `FakeReward.live` is one.

It scores with `FakeReward`'s rule and fails as that is told to (`failure` ends a connection at once, an unscorable
candidate has an error of its own). What a test may set besides: `handshake_status`, `answers` (index → a message that
is sent as it is at the candidate's first piece), `die_after` (frames after which the connection is cut), `deaf` (it
takes the opening and reads nothing more), `silent` (it never sends a score), `blind` (nor a partial one), `never_done`
(it does not answer that), `die_at_second` (a connection is cut at its second opening), `hang_up` (set: those between
two jobs are closed, after `hang_up_with` if there is one). What it may read: `sessions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, ServiceError
from acemath_core.wire import Candidate, ScoreItem, ScoreRequest


class Scores(Protocol):
    """What `FakeReward` has that is needed here."""

    failure: ServiceError | None
    cancelled: int
    score: Callable[[Candidate], float]

    def check(self, body: ScoreRequest) -> tuple[str, list[int]]: ...

    async def scored(self, body: ScoreRequest, deadline: Deadline) -> ScoreItem: ...


@dataclass
class LiveRecord:
    """One job: how it was opened, its connection's headers, and what has come of it; `closed` when it has ended."""

    opening: dict[str, Any]
    headers: dict[str, str]
    texts: dict[int, str] = field(default_factory=dict)
    pieces: int = 0
    ended: list[int] = field(default_factory=list)
    peeked: dict[int, str] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    scored: int = 0
    closed: bool = False


class FakeLive:
    """The route's double."""

    def __init__(self, reward: Scores) -> None:
        self._reward = reward
        self.handshake_status: int | None = None
        self.answers: dict[int, str | dict[str, Any]] = {}
        self.die_after: int | None = None
        self.deaf = self.silent = self.blind = self.never_done = self.die_at_second = False
        self.hang_up, self.hang_up_with = asyncio.Event(), ""
        self.sessions: list[LiveRecord] = []

    async def serve(self, websocket: WebSocket) -> None:
        """One connection."""
        if self.handshake_status is not None:
            await websocket.send_denial_response(Response(status_code=self.handshake_status))
            return
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await self._jobs(websocket)

    async def _jobs(self, websocket: WebSocket) -> None:
        frames, first = _frames(websocket), True
        while (opening := await self._opening(websocket, frames)) is not None:
            if self.die_at_second and not first:
                await websocket.close(1011)
                return
            first = False
            if not await self._job(websocket, opening, frames):
                return
            if not self.never_done:
                await websocket.send_text(json.dumps({"type": "done"}))

    async def _opening(self, websocket: WebSocket, frames: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
        coming: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(anext(frames))
        hung_up = asyncio.ensure_future(self.hang_up.wait())
        try:
            await asyncio.wait({coming, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            if self.hang_up_with:
                await websocket.send_text(self.hang_up_with)
            await websocket.close(1000)
            return None
        finally:
            coming.cancel()
            hung_up.cancel()
            await asyncio.wait({coming, hung_up})

    async def _job(self, websocket: WebSocket, opening: dict[str, Any], frames: AsyncIterator[dict[str, Any]]) -> bool:
        """One job; whether its client is done, so that another may come."""
        record = LiveRecord(opening, dict(websocket.headers))
        self.sessions.append(record)
        scoring: set[asyncio.Task[None]] = set()
        try:
            done = await self._exchange(websocket, record, frames, scoring)
            self._reward.cancelled += len(record.ended) - record.scored
            return done
        except WebSocketDisconnect:
            self._reward.cancelled += len(record.ended) - record.scored
            raise
        except ServiceError as error:
            await websocket.send_text(json.dumps(_error(error)))
            await websocket.close(1013)
            return False
        finally:
            record.closed = True
            for task in scoring:
                task.cancel()
            await asyncio.gather(*scoring, return_exceptions=True)

    async def _exchange(
        self,
        websocket: WebSocket,
        record: LiveRecord,
        coming: AsyncIterator[dict[str, Any]],
        scoring: set[asyncio.Task[None]],
    ) -> bool:
        self._check(record, "")
        if self.deaf:
            await asyncio.sleep(3600)
        frames = 0
        async for frame in coming:
            frames += 1
            if self.die_after is not None and frames > self.die_after:
                await websocket.close(1011)
                return False
            if frame["type"] == "done":
                return True
            index = frame["index"]
            if index in record.dropped:
                continue  # whatever comes of it, as of one that failed
            if frame["type"] == "drop":
                if index not in record.texts:
                    raise InvalidRequest(f"candidate {index} has no pieces", param="index")
                record.dropped.append(index)
            elif frame["type"] == "end":
                record.ended.append(index)
                scoring.add(asyncio.create_task(self._score(websocket, record, index)))
            elif frame["type"] == "peek":
                await self._peek(websocket, record, index)
            else:
                await self._take(websocket, record, index, frame["text"])
        return False

    async def _take(self, websocket: WebSocket, record: LiveRecord, index: int, text: str) -> None:
        assert index not in record.ended, "a piece of an ended candidate"
        record.pieces += 1
        if index not in record.texts and index in self.answers:
            answer = self.answers[index]
            await websocket.send_text(answer if isinstance(answer, str) else json.dumps(answer))
        record.texts[index] = record.texts.get(index, "") + text

    async def _score(self, websocket: WebSocket, record: LiveRecord, index: int) -> None:
        if self.silent or index in self.answers:
            return
        if index not in record.texts:
            raise AssertionError("an end of a candidate without pieces ends the real service's connection")
        try:
            request = self._check(record, record.texts[index])
            item = await self._reward.scored(request, Deadline.after(float(record.opening["deadline"])))
        except ServiceError as error:
            await websocket.send_text(json.dumps(_error(error, index)))
        else:
            frame = {"type": "score", "index": index, "score": item.score, "tokens": item.tokens}
            await websocket.send_text(json.dumps(frame))
        record.scored += 1

    async def _peek(self, websocket: WebSocket, record: LiveRecord, index: int) -> None:
        assert index in record.texts and index not in record.ended, "a peek at a candidate that is not being written"
        assert not (self.blind and index in record.peeked), "a second peek while the first has no answer"
        record.peeked[index] = record.texts[index]
        if self.blind:
            return
        try:
            request = self._check(record, record.texts[index])
        except ServiceError as error:
            await websocket.send_text(json.dumps(_error(error, index)))
            return
        (text,), (_, lengths) = request.candidates, self._reward.check(request)
        frame = {"type": "partial", "index": index, "score": self._reward.score(text), "tokens": lengths[0]}
        await websocket.send_text(json.dumps(frame))

    def _check(self, record: LiveRecord, text: str) -> ScoreRequest:
        opening = record.opening
        if self._reward.failure is not None:
            raise self._reward.failure
        if opening.keys() - {"joined", "request_id"} != {"type", "messages", "model", "deadline"}:
            raise InvalidRequest("not an opening")
        request = ScoreRequest(messages=opening["messages"], candidates=[text], model=opening["model"])
        self._reward.check(request)
        return request


async def _frames(websocket: WebSocket) -> AsyncIterator[dict[str, Any]]:
    while True:
        message = json.loads(await websocket.receive_text())
        for frame in message if isinstance(message, list) else [message]:
            yield frame


def _error(error: ServiceError, index: int | None = None) -> dict[str, Any]:
    said = {"code": error.code.value, "message": error.message, "param": error.param}
    return {"type": "error", "index": index, "retry_after": error.retry_after, **said}
