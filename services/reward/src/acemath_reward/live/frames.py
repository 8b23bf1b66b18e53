"""The frames of `WS /v1/score/live`: one JSON object in each text message; an unknown field is an error."""

from __future__ import annotations

import json
import re
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
    """The first frame, once."""

    type: Literal["open"]
    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = Field(None, description="name@version; omitted = the only active one")
    deadline: float | None = Field(None, gt=0, description="seconds from now in which all scores are wanted")


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


ClientFrame = Open | Piece | End | Peek | Drop
ServerFrame = Score | Partial | Error
_FRAMES: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])


def read_frame(text: str) -> ClientFrame:
    """The frame in a message. Raises `InvalidRequest`, which names the field at fault."""
    try:
        return _FRAMES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            return _torn_piece(text)
        field = first["loc"][1:]  # behind the frame's type
        raise from_validation([{**first, "loc": field}]) from error


def _torn_piece(text: str) -> Piece:
    """A piece that ends or begins inside a pair of surrogates: JSON, but none that pydantic's parser takes."""
    try:
        frame = json.loads(text) if _LONE.search(text) else None
    except (ValueError, RecursionError):
        frame = None
    if not isinstance(frame, dict) or frame.get("type") != "piece" or not _TORN_FIELDS.issuperset(frame):
        raise InvalidRequest("the message is not valid JSON, or holds a lone surrogate outside a piece's text")
    try:
        return Piece.model_validate(frame)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False, include_context=False)) from error
