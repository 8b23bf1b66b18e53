"""The frames of the reward service's `WS /v1/score/live` (docs/reward-api.md), as its client writes and reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from acemath_core.errors import ErrorCode, InvalidRequest
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import CallFailed
from acemath_gateway.metrics import CallResult


class ScoreFrame(BaseModel):
    """A candidate's score."""

    type: Literal["score"]
    index: int
    score: FiniteFloat


class PartialFrame(BaseModel):
    """The score of a candidate's text so far."""

    type: Literal["partial"]
    index: int
    score: FiniteFloat


class ErrorFrame(BaseModel):
    """What went wrong: with one candidate or, without `index`, with the connection, which then ends."""

    type: Literal["error"]
    index: int | None = None
    code: str
    message: str
    param: str | None = None


class DoneFrame(BaseModel):
    """The service has freed a job that was left, and takes another one."""

    type: Literal["done"]


Frame = ScoreFrame | PartialFrame | ErrorFrame | DoneFrame
_Read = Annotated[Frame, Field(discriminator="type")]
_FRAME: TypeAdapter[Frame] = TypeAdapter(_Read)
_FRAMES: TypeAdapter[list[Frame]] = TypeAdapter(list[_Read])
_RESULTS = {
    ErrorCode.REWARD_OVERLOADED: CallResult.OVERLOADED,
    ErrorCode.NOT_READY: CallResult.OVERLOADED,
    ErrorCode.MODEL_NOT_SERVED: CallResult.NOT_SERVED,
    ErrorCode.INVALID_REQUEST: CallResult.REFUSED,
    ErrorCode.DEADLINE_EXCEEDED: CallResult.LATE,
    "idle_timeout": CallResult.LATE,  # the policy was silent for longer than a connection may be
}


DONE = '{"type": "done"}'
"""Nothing more is wanted of this job."""


def open_frame(context: Sequence[ChatMessage], model: str, seconds: float, request_id: str | None) -> str:
    """The first frame: the turns that candidates answer, who is to score them, and in how many seconds from now."""
    frame = {"type": "open", "messages": list(context), "model": model, "deadline": seconds, "joined": True}
    return json.dumps(frame | ({"request_id": request_id} if request_id else {}))


def piece_frame(index: int, text: str) -> str:
    """What comes next of a candidate."""
    return f'{{"type": "piece", "index": {index}, "text": {json.dumps(text)}}}'


def end_frame(index: int) -> str:
    """A candidate is complete."""
    return f'{{"type": "end", "index": {index}}}'


def peek_frame(index: int) -> str:
    """What would the score of a candidate be if it ended here? One such question at a time for each candidate."""
    return f'{{"type": "peek", "index": {index}}}'


def drop_frame(index: int) -> str:
    """A candidate is not wanted any more."""
    return f'{{"type": "drop", "index": {index}}}'


def message_of(frames: Sequence[str]) -> str:
    """The message that has these frames, one or more."""
    return frames[0] if len(frames) == 1 else f"[{','.join(frames)}]"


def read_frames(message: str | bytes) -> list[Frame]:
    """The frames in a message; raises `CallFailed` when it is none."""
    try:
        return _FRAMES.validate_json(message) if message[:1] in ("[", b"[") else [_FRAME.validate_json(message)]
    except ValidationError as error:
        raise CallFailed(
            CallResult.BROKEN, "sent a frame that is no score, no partial one, no error and no end"
        ) from error


def failure(frame: ErrorFrame) -> CallFailed | InvalidRequest:
    """What an error means to us: `InvalidRequest` only where a POST of the same candidate would be refused too.

    Other refusals can be the connection's own (e.g. too many candidates that begin in odd ways), so that a POST is to
    decide.
    """
    if frame.index is not None and frame.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        return InvalidRequest(frame.message[:500], param=frame.param, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    return CallFailed(_RESULTS.get(frame.code, CallResult.BROKEN), f"says {frame.code!r}: {frame.message[:500]}")
