"""The frames of `WS /v1/score/live`: a text message is one, or a list of them; an unknown field is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from acemath_core.errors import InvalidRequest
from acemath_core.wire import Turn, Wire
from acemath_web.errors import from_validation

_LONE = re.compile(r"\\u[dD][89a-fA-F]")  # at least as a half of a pair
_TORN_FIELDS = {"type", "index", "text"}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    return value


PieceText = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string"})]
"""Part of a text; where pieces meet, a pair of surrogates may be split."""


class _Frame(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Open(_Frame):
    """The first frame of a job."""

    type: Literal["open"]
    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = Field(None, description="name@version; omitted = the only active one")
    deadline: float | None = Field(None, gt=0, description="seconds from now in which all scores are wanted")
    joined: bool = Field(False, description="whether the client reads lists of frames, too")
    request_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.:-]{1,128}$", description="for the log; omitted = that of the connection"
    )


class Piece(_Frame):
    """What comes next of a candidate: exactly one of `text` and `token_ids`."""

    type: Literal["piece"]
    index: Annotated[int, Field(ge=0)]
    text: PieceText | None = None
    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Piece:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give exactly one of text and token_ids")
        return self


class End(_Frame):
    """A candidate is finished: its score is wanted."""

    type: Literal["end"]
    index: Annotated[int, Field(ge=0)]


class Peek(_Frame):
    """What were the candidate worth if it ended here? More pieces, more peeks and its end may follow."""

    type: Literal["peek"]
    index: Annotated[int, Field(ge=0)]


class Drop(_Frame):
    """A candidate is not wanted any more: it has no score, and what it holds is freed. What comes of it is ignored."""

    type: Literal["drop"]
    index: Annotated[int, Field(ge=0)]


class Done(_Frame):
    """The client wants nothing more of this job; the service frees it, says the same, and takes another opening."""

    type: Literal["done"] = "done"


class Score(_Frame):
    """A candidate's score, as in `POST /v1/score`."""

    type: Literal["score"] = "score"
    index: int
    score: float
    tokens: int = Field(description="tokens of context and candidate together")


class Partial(_Frame):
    """The answer to a peek: what `POST /v1/score` gives for what came of the candidate before the peek."""

    type: Literal["partial"] = "partial"
    index: int
    score: float
    tokens: int = Field(description="tokens of context and that much of the candidate together")


class Error(_Frame):
    """What went wrong: with one candidate, and the others go on; or, without `index`, with all, and it is the last."""

    type: Literal["error"] = "error"
    index: int | None = None
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None


ClientFrame = Open | Piece | End | Peek | Drop | Done
ServerFrame = Score | Partial | Error | Done
_Read = Annotated[ClientFrame, Field(discriminator="type")]
_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(_Read)
_FRAMES: TypeAdapter[list[ClientFrame]] = TypeAdapter(Annotated[list[_Read], Field(min_length=1)])


def read_frames(text: str) -> list[ClientFrame]:
    """The frames in a message: one, or those of a list. Raises `InvalidRequest`, which names the field at fault."""
    joined = text.lstrip()[:1] == "["
    try:
        return _FRAMES.validate_json(text) if joined else [_FRAME.validate_json(text)]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            return _with_torn_pieces(text)
        field = first["loc"][2 if joined else 1 :]  # behind the frame's place and type
        raise from_validation([{**first, "loc": field}]) from error


def message_of(frames: Sequence[ServerFrame]) -> str:
    """The message that has these frames, one or more."""
    said = [frame.model_dump_json() for frame in frames]
    return said[0] if len(said) == 1 else f"[{','.join(said)}]"


def _with_torn_pieces(text: str) -> list[ClientFrame]:
    """Of what is JSON, but none that pydantic's parser takes: a piece may end or begin inside a pair of surrogates."""
    try:
        read = json.loads(text) if _LONE.search(text) else None
    except (ValueError, RecursionError):
        read = None
    frames = read if isinstance(read, list) and read else [read]
    return [_torn_piece(frame) if _is_torn(frame) else _whole(frame) for frame in frames]


def _is_torn(frame: object) -> bool:
    return isinstance(frame, dict) and frame.get("type") == "piece" and _TORN_FIELDS.issuperset(frame)


def _whole(frame: object) -> ClientFrame:
    """Any other frame beside one that is torn."""
    try:
        return _FRAME.validate_json(json.dumps(frame, ensure_ascii=False).encode())
    except (UnicodeEncodeError, ValidationError) as error:
        message = "the message is not valid JSON, or holds a lone surrogate outside a piece's text"
        raise InvalidRequest(message) from error


def _torn_piece(frame: object) -> Piece:
    try:
        return Piece.model_validate(frame)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False, include_context=False)) from error
