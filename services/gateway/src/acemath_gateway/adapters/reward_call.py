"""One `POST /v1/score` to one reward service: a candidate alone as JSON, several together as a stream.

Of several, each has its score when it is ready, so that neither the deadline nor a stream that breaks takes what was
there before. The version is in the stream's header, so that no score is used before it is known who gave it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest
from acemath_core.wire import MODEL_HEADER, ErrorBody, ScoreRequest, ScoreResponse, Turn
from acemath_gateway.adapters.http import CallFailed, Upstream, translated
from acemath_gateway.adapters.live_wire import ErrorFrame, failure
from acemath_gateway.adapters.sse import SseError, SseReader
from acemath_gateway.adapters.transport import Answer
from acemath_gateway.metrics import CallResult

_MAX_EVENT_BYTES = 64 * 1024


class Wanted:
    """A candidate whose score somebody waits for; to be made where the event loop runs.

    Attributes:
        text: the candidate.
        score: gets its raw score, or why there is none; cancelled when nobody waits any more.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.score: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @property
    def waiting(self) -> bool:
        """Whether the score is still to come, and wanted."""
        return not self.score.done()

    def give(self, score: float) -> None:
        """This is its score."""
        if self.waiting:
            self.score.set_result(score)

    def fail(self, error: Exception) -> None:
        """This is why there is none."""
        if self.waiting:
            self.score.set_exception(error)


class ScoreCall:
    """What every call of one job has in common.

    Args:
        upstream: connections to the services.
        version: name@version that is to score.
        turns: what the candidates answer.
        deadline: the job's.
    """

    def __init__(self, upstream: Upstream, version: str, turns: Sequence[Turn], deadline: Deadline) -> None:
        self._upstream, self._version, self._turns, self._deadline = upstream, version, list(turns), deadline

    async def ask(self, endpoint: str, wanted: Sequence[Wanted], give_up: Deadline) -> None:
        """Have candidates scored by the service at `endpoint`; each gets its score as it comes.

        Raises:
            InvalidRequest: the service cannot score one of them; none has got a score.
            CallFailed: some have got no score.
        """
        metrics, role = self._upstream.metrics, self._upstream.role
        started, result = time.monotonic(), CallResult.CANCELLED
        try:
            with self._upstream.replicas.working(endpoint, len(wanted)):
                await (self._alone if len(wanted) == 1 else self._together)(endpoint, wanted, give_up)
            result = CallResult.OK
        except InvalidRequest:
            result = CallResult.REFUSED
            self._upstream.replicas.answered(endpoint)
            raise
        except CallFailed as error:
            result = error.result
            if result is CallResult.MISMATCH:
                metrics.version_mismatch.labels(role).inc()
            raise
        finally:
            self._upstream.count(result, started)

    async def _alone(self, endpoint: str, wanted: Sequence[Wanted], give_up: Deadline) -> None:
        body = self._body(wanted, stream=False)
        answer = await self._upstream.post(f"{endpoint}/v1/score", body, self._deadline, give_up=give_up)
        wanted[0].give(_score_in(answer, self._version))

    async def _together(self, endpoint: str, wanted: Sequence[Wanted], give_up: Deadline) -> None:
        url, body = f"{endpoint}/v1/score", self._body(wanted, stream=True)
        with closing(await self._upstream.stream(url, body, self._deadline, give_up=give_up)) as answer:
            _check_head(answer, self._version)
            with translated(self._deadline):
                async with asyncio.timeout(give_up.remaining()):
                    await _read(answer, _Scores(wanted, partial(self._upstream.replicas.answered, endpoint)))

    def _body(self, wanted: Sequence[Wanted], *, stream: bool) -> dict[str, object]:
        texts = [one.text for one in wanted]
        request = ScoreRequest(messages=self._turns, candidates=texts, model=self._version, stream=stream)
        return request.model_dump(mode="json", exclude_none=True)


class _Score(BaseModel):
    index: int
    score: FiniteFloat


class _Done(BaseModel):
    model: str


_EVENTS: TypeAdapter[_Score | _Done | ErrorBody] = TypeAdapter(_Score | _Done | ErrorBody)


class _Scores:
    """The events of one stream, and whose scores they are; tells `answered` of the first one."""

    def __init__(self, wanted: Sequence[Wanted], answered: Callable[[], None]) -> None:
        self._wanted, self._given, self._answered = wanted, set[int](), answered
        self.done = False

    def take(self, data: str) -> None:
        """Note what one event says; raises `CallFailed` when it is a failure, or nothing that was asked for."""
        try:
            event = _EVENTS.validate_json(data)
        except ValidationError as error:
            raise CallFailed(CallResult.BROKEN, "sent an event that is neither a score nor an end") from error
        if isinstance(event, ErrorBody):
            raise failure(ErrorFrame(type="error", code=str(event.error.code), message=event.error.message))
        if isinstance(event, _Done):
            self.done = len(self._given) == len(self._wanted)
            return
        if not 0 <= event.index < len(self._wanted) or event.index in self._given:
            raise CallFailed(CallResult.BROKEN, f"scored candidate {event.index}, which nobody asked for")
        if not self._given:
            self._answered()
        self._given.add(event.index)
        self._wanted[event.index].give(event.score)


async def _read(answer: Answer, scores: _Scores) -> None:
    """To the end of the body, after which the connection can be used again."""
    reader = SseReader(_MAX_EVENT_BYTES)
    try:
        async for chunk in answer.pieces():
            for data in reader.feed(chunk):
                scores.take(data)
    except SseError as error:
        raise CallFailed(CallResult.BROKEN, str(error)) from error
    if not scores.done:
        raise CallFailed(CallResult.BROKEN, "ended its stream before every candidate had a score")


def _check_head(answer: Answer, version: str) -> None:
    if not (answer.header("content-type") or "").startswith("text/event-stream"):
        raise CallFailed(CallResult.BROKEN, "answered with something other than an event stream")
    _check_version(answer.header(MODEL_HEADER), version)


def _check_version(scored_by: str | None, version: str) -> None:
    if scored_by != version:
        raise CallFailed(CallResult.MISMATCH, f"scored with {scored_by!r}, the lease is on {version!r}")


def _score_in(answer: bytes, version: str) -> float:
    try:
        response = ScoreResponse.model_validate_json(answer)
    except ValidationError as error:
        raise CallFailed(CallResult.BROKEN, "answered with something other than a score") from error
    _check_version(response.model, version)
    if len(response.data) != 1 or response.data[0].index != 0 or not math.isfinite(response.data[0].score):
        raise CallFailed(CallResult.BROKEN, "did not answer with one finite score for one candidate")
    return response.data[0].score
