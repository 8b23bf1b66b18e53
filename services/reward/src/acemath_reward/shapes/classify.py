"""`POST /classify` of vLLM: whole conversations, rendered by the caller, or one as messages.

`input` is text to which the caller has applied the model's chat template, or its token ids: **control tokens in it are
control tokens**, as they are in vLLM, so the caller must be a backend that is trusted to render what its users write
(`acemath_reward.rendered`). With `messages` this service renders, and no text in them can become a control token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from acemath_core.errors import InvalidRequest
from acemath_core.prompts import ChatMessage
from acemath_core.wire import Text, Turn, Wire
from acemath_prompts import TemplateError
from acemath_reward.encoding import EncodedCall, Vocabulary, check_text, without_duplicates
from acemath_reward.failures import ERRORS
from acemath_reward.shapes.call import MAX_ITEMS, Scorer, checked
from acemath_reward.shapes.fields import Absent, Off, PoolingRequest, Usage, answer_id, given
from acemath_web.queries import StrictQueryRoute

_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_MANY_SCHEMA = {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS}
_INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {**_MANY_SCHEMA, "items": {"anyOf": [{"type": "string"}, _IDS_SCHEMA]}},
        _IDS_SCHEMA,
    ]
}
_SOURCES = ("input", "messages")
_OF_INPUT, _OF_MESSAGES = (given((source,), _SOURCES) for source in _SOURCES)
_OF_MESSAGES["properties"]["add_special_tokens"] = {"enum": [False, None]}

Conversation = str | tuple[int, ...]


def _conversations(value: object) -> tuple[Conversation, ...]:
    """`input` as a list of conversations. Raises `ValueError` naming the element."""
    single = isinstance(value, str) or (isinstance(value, list) and bool(value) and _is_id(value[0]))
    many = [value] if single else value
    if not isinstance(many, list) or not many:
        raise ValueError("must be a text, a list of texts, token ids, or a list of token ids, and not empty")
    if len(many) > MAX_ITEMS:
        raise ValueError(f"has {len(many)} conversations; one call may have {MAX_ITEMS}")
    return tuple(_conversation(index, one) for index, one in enumerate(many))


def _conversation(index: int, value: object) -> Conversation:
    if isinstance(value, str):
        try:
            return _TEXT.validate_python(value)
        except ValidationError:
            raise ValueError(f"element {index} holds a lone surrogate, which is no Unicode text") from None
    if isinstance(value, list) and value and all(map(_is_id, value)):
        return tuple(value)
    raise ValueError(f"element {index} must be a text, or a list of at least one token id (whole numbers from 0 on)")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class ClassifyRequest(PoolingRequest):
    """The body of `POST /classify`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_OF_INPUT, _OF_MESSAGES]})

    input: Annotated[tuple[Conversation, ...], PlainValidator(_conversations), WithJsonSchema(_INPUT_SCHEMA)] | None = (
        Field(None, description="rendered conversations; control tokens in them are recognised")
    )
    messages: list[Turn] | None = Field(None, min_length=1, description="one conversation, instead of input")
    add_special_tokens: StrictBool | None = Field(
        None, description="whether the tokenizer adds its own (Llama 3: bos); omitted: true for input, as in vLLM"
    )
    add_generation_prompt: Off = False
    continue_final_message: Off = False
    chat_template: Absent = None
    chat_template_kwargs: Absent = None
    media_io_kwargs: Absent = None

    @model_validator(mode="after")
    def _one_source(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give exactly one of input and messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens=true is not supported with messages: the chat template adds them")
        return self


class ClassifyItem(Wire):
    """One conversation's answer; `probs` has one number, the model's only label."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyResponse(Wire):
    """The answer of `POST /classify`, as vLLM's `ClassificationResponse`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ClassifyItem]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Rendered:
    """Conversations that the caller has rendered, as `Work`."""

    model: str | None
    conversations: tuple[Conversation, ...]
    add_special_tokens: bool
    param: str = "input"

    def check(self, max_chars: int) -> None:
        """See `check_text`."""
        for name, one in self._named():
            if isinstance(one, str):
                check_text(name, one, max_chars)

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """Every conversation whole, cut where `/v1/score` cuts, so that those of one problem share its context."""
        rendered = vocabulary.rendered
        sequences = []
        for name, one in self._named():
            ids = one if not isinstance(one, str) else rendered.ids(one, add_special_tokens=self.add_special_tokens)
            sequences.append(rendered.split(checked(name, ids, vocabulary)))
        return without_duplicates(sequences, 0)

    def _named(self) -> list[tuple[str, Conversation]]:
        return [(f"{self.param}.{index}", one) for index, one in enumerate(self.conversations)]


@dataclass(frozen=True, slots=True)
class Messages:
    """One conversation that this service renders, as `Work`; its system text stays the caller's, as in vLLM."""

    model: str | None
    messages: tuple[Turn, ...]
    param: str = "messages"

    def check(self, max_chars: int) -> None:
        """See `check_text`."""
        for index, turn in enumerate(self.messages):
            check_text(f"messages.{index}", turn.content, max_chars)

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """The rendered conversation. Raises `InvalidRequest` where the chat template refuses it, or it is too long."""
        turns: list[ChatMessage] = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        try:
            ids = vocabulary.encoder.encode_conversation(turns)
        except TemplateError as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequest(message, param="messages") from error
        return without_duplicates([vocabulary.rendered.split(checked("messages", ids, vocabulary))], 0)


def classify_router(scorer: Scorer) -> APIRouter:
    """The route; `scorer` scores."""
    router = APIRouter(tags=["vllm"], route_class=StrictQueryRoute)

    @router.post("/classify", summary="Whole conversations, as vLLM classifies them", responses=ERRORS)
    async def classify(body: ClassifyRequest, request: Request) -> ClassifyResponse:
        scored = await scorer.score(request, _work(body))
        head = scored.vocabulary.head
        values = [head.value(score, body.activated) for score in scored.scores]
        return ClassifyResponse(
            id=answer_id("classify", request, body),
            created=int(time.time()),
            model=scored.model,
            data=[ClassifyItem(index=i, label=head.label, probs=[v], num_classes=1) for i, v in enumerate(values)],
            usage=Usage.of(scored.tokens),
        )

    return router


def _work(body: ClassifyRequest) -> Rendered | Messages:
    if body.input is not None:
        return Rendered(body.model, body.input, body.add_special_tokens is not False)
    return Messages(body.model, tuple(body.messages or ()))
