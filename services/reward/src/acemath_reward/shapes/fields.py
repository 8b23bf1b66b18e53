"""Fields that several shapes share, and how a field that is not implemented is refused by its name."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from acemath_core.wire import Text, Wire
from acemath_reward.shapes.call import MAX_ITEMS
from acemath_web.context import REQUEST_ID_HEADER, current_request_id


def only(*allowed: object) -> BeforeValidator:
    """Accept a field at the values that change nothing; refuse any other as an unsupported field."""

    def check(value: object) -> object:
        if any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            return value
        raise PydanticCustomError("extra_forbidden", "not supported")

    return BeforeValidator(check)


Absent = Annotated[None, only(None)]
"""A field that this service does not implement; null is what leaving it out means."""

Off = Annotated[Literal[False], only(False)]
"""A switch that this service does not implement."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _texts_schema(least: int) -> WithJsonSchema:
    texts = {"type": "array", "items": {"type": "string"}, "minItems": least, "maxItems": MAX_ITEMS}
    return WithJsonSchema({"anyOf": [{"type": "string"}, texts]}, mode="validation")


_Texts = Annotated[list[Text], BeforeValidator(_listed), Field(max_length=MAX_ITEMS)]
AnyTexts = Annotated[_Texts, _texts_schema(0)]
"""One text or a list of them, read as a list; the list may be empty."""


def _some(texts: list[str]) -> list[str]:
    if not texts:
        raise ValueError("give at least one text")
    return texts


Texts = Annotated[_Texts, AfterValidator(_some), _texts_schema(1)]
"""One text or a list of them, read as a list of at least one."""


def _is_number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("must be a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_is_number)]
"""A whole number, 8.0 too; no text and no truth value is read as one."""


def given(names: Sequence[str], of: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a body that has all fields `names`, and none of the others `of`; null is left out."""
    fields = {name: {"not": {"type": "null"}} if name in names else {"type": "null"} for name in of}
    return {"required": list(names), "properties": fields}


class PoolingRequest(Wire):
    """What vLLM's pooling requests have in common (vLLM 0.32, `entrypoints/pooling/base/protocol.py`)."""

    model: str | None = Field(None, description="name@version; omitted = the only active one")
    use_activation: StrictBool | None = Field(
        None, description="false: raw scores; true or omitted: the checkpoint's activation, a sigmoid unless it says so"
    )
    activation: StrictBool | None = Field(None, description="the name of use_activation before vLLM 0.12")
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.:-]{1,128}$", description="part of the answer's id")
    user: Absent = None
    truncate_prompt_tokens: Absent = Field(None, description="nothing is ever cut: too long is a 400")
    truncation_side: Absent = None
    padding: Annotated[Literal["do_not_pad"] | None, only("do_not_pad", None)] = None
    priority: Annotated[Literal[0], only(0)] = 0
    mm_processor_kwargs: Absent = None
    cache_salt: Absent = None

    @model_validator(mode="after")
    def _one_activation(self) -> PoolingRequest:
        if self.activation is not None and self.use_activation not in (None, self.activation):
            raise ValueError("use_activation and activation contradict each other; send use_activation only")
        return self

    @property
    def activated(self) -> bool | None:
        """`use_activation` under either of its names."""
        return self.activation if self.use_activation is None else self.use_activation


class PairRequest(PoolingRequest):
    """What vLLM's `/score` and `/rerank` have in common (`entrypoints/pooling/scoring/protocol.py`)."""

    max_tokens_per_query: Annotated[Literal[0], only(0)] = Field(0, description="nothing is ever cut")
    max_tokens_per_doc: Annotated[Literal[0], only(0)] = Field(0, description="nothing is ever cut")
    instruction: Absent = None
    chat_template_kwargs: Absent = None


class Usage(Wire):
    """vLLM's usage of a pooling call: every conversation in full, shared contexts and duplicates as often as sent."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Usage:
        """The usage of conversations with so many tokens each."""
        return cls(prompt_tokens=sum(tokens), total_tokens=sum(tokens))


def answer_id(prefix: str, request: Request, body: PoolingRequest) -> str:
    """The answer's id as vLLM makes it: of the caller's `x-request-id`, else of the body's `request_id`."""
    given = current_request_id() if REQUEST_ID_HEADER in request.headers else body.request_id
    return f"{prefix}-{given or current_request_id() or secrets.token_hex(16)}"
