"""The frames of `WS /v1/score/live`: one JSON object in each text message; an unknown field is an error."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from acemath_core.errors import InvalidRequest
from acemath_core.wire import Text, Turn, Wire
from acemath_web.errors import from_validation


class _Frame(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Open(_Frame):
    """The first frame, once."""

    type: Literal["open"]
    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = Field(None, description="name@version; omitted = the only active one")
    deadline: float | None = Field(None, gt=0, description="seconds from now in which all scores are wanted")


class Piece(_Frame):
    """What comes next of a candidate."""

    type: Literal["piece"]
    index: Annotated[int, Field(ge=0)]
    text: Text | None = None
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


class Score(_Frame):
    """A candidate's score, as in `POST /v1/score`."""

    type: Literal["score"] = "score"
    index: int
    score: float
    tokens: int = Field(description="tokens of context and candidate together")


class Error(_Frame):
    """What went wrong: with one candidate, and the others go on; or, without `index`, with all, and it is the last."""

    type: Literal["error"] = "error"
    index: int | None = None
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None


ClientFrame = Open | Piece | End
_FRAMES: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])


def read_frame(text: str) -> ClientFrame:
    """The frame in a message. Raises `InvalidRequest`, which names the field at fault."""
    try:
        return _FRAMES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidRequest("the message is not valid JSON") from error
        field = first["loc"][1:]  # behind the frame's type
        raise from_validation([{**first, "loc": field}]) from error
