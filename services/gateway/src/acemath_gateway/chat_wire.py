"""`POST /v1/chat/completions`, the request: OpenAI's fields to a job.

Every field of OpenAI's API has one of three fates: it is taken (`ChatRequest`), it is accepted only at the value that
means "nothing" (`NEUTRAL`), or it is refused with a 400 that names it. Nothing is accepted and ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from acemath_core.errors import ErrorCode, InvalidRequest, NotFound
from acemath_core.prompts import ChatMessage
from acemath_core.wire import MAX_CANDIDATES, MAX_SEED, Priority, Selection, SolveRequest, Wire
from acemath_gateway.jobs import SolveJob
from acemath_gateway.solve_wire import Limits, random_seed

T = TypeVar("T")

MODEL = "acemath"
"""The one model name of this API; which versions answer is in `system_fingerprint` and `acemath.models`."""

_SOLVE = SolveRequest.model_fields
_Stop = Annotated[str, Field(min_length=1, max_length=256)]

# OpenAI's other fields, and the values besides null at which each changes nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# What OpenAI's own answers carry in a message, so that a client may send back what it was given.
NEUTRAL_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "reasoning": (),
    "refusal": (),
    "tool_calls": ([],),
}


class TextPart(Wire):
    """One piece of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


_Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Field(max_length=4)]


def _as_parts(value: object) -> object:
    if isinstance(value, str):
        return [TextPart(type="text", text=value)]
    if isinstance(value, list):
        return value
    raise ValueError("must be a string or a list of text parts")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Message(Wire):
    """One turn. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[_Parts, BeforeValidator(_as_parts, json_schema_input_type=str | _Parts)]

    def turn(self) -> ChatMessage:
        """The turn with its text in one piece; parts are joined by line breaks."""
        text = "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Wire):
    """`stream_options`: whether a last chunk carries the usage."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SolveOptions(Wire):
    """`acemath`: the fields of `/v1/solve` that OpenAI has no word for."""

    selection: Selection = Selection.BEST_OF_N
    on_scorer_failure: Literal["error", "majority"] = "error"
    priority: Priority = Priority.DEFAULT
    candidates: Literal["none", "scores", "full"] = "none"
    deadline_seconds: Annotated[float, Field(gt=0.0, le=3600.0)] | None = None
    adaptive: bool = False
    early_reject: bool = False


class ChatRequest(Wire):
    """The fields that are taken; null means the default, as in OpenAI's API."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32768)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=32768)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[_Stops, BeforeValidator(_as_list, json_schema_input_type=_Stop | _Stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    acemath: SolveOptions = SolveOptions()

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


KNOWN = frozenset(ChatRequest.model_fields) | frozenset(NEUTRAL)
"""Every field whose fate is known; any other is refused."""
ELSEWHERE = {name: f"acemath.{name}" for name in SolveOptions.model_fields}
"""Fields of `/v1/solve` that stand one level deeper here."""


def without_neutral(fields: dict[str, object]) -> dict[str, object]:
    """The fields without those that OpenAI knows and that stand at a value which changes nothing.

    Raises:
        InvalidRequest: (`unsupported_parameter`) such a field asks for something.
    """
    kept = _drop_neutral(fields, NEUTRAL, "")
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [
            _drop_neutral(message, NEUTRAL_IN_MESSAGE, f"messages.{place}.") if isinstance(message, dict) else message
            for place, message in enumerate(messages)
        ]
    return kept


def chat_job(request: ChatRequest, request_id: str, limits: Limits) -> SolveJob:
    """The job that a chat asks for: `best_of` candidates of which the `n` best are given.

    Raises:
        NotFound: (`model_not_found`) another model.
        InvalidRequest: what one field says contradicts another, the conversation does not end in a user's turn, or
            `early_reject` where there is nothing to stop.
    """
    if request.model != MODEL:
        raise NotFound(
            f"the model {request.model[:100]!r} does not exist here; use {MODEL!r}",
            param="model",
            code=ErrorCode.MODEL_NOT_FOUND,
        )
    _check_together(request)
    job = SolveJob(
        id=request_id,
        turns=_turns(request.messages, limits),
        n=best_of(request),
        temperature=_given(request.temperature, _SOLVE["temperature"].default),
        top_p=_given(request.top_p, _SOLVE["top_p"].default),
        max_tokens=_max_tokens(request),
        seed=random_seed() if request.seed is None else request.seed,
        stop=tuple(request.stop or ()),
        selection=request.acemath.selection,
        on_scorer_failure=request.acemath.on_scorer_failure,
        priority=request.acemath.priority,
        deadline=limits.deadline(request.acemath.deadline_seconds, "acemath.deadline_seconds"),
        adaptive=request.acemath.adaptive,
        early_reject=request.acemath.early_reject,
        at_least=request.n or 1,
    )
    limits.check_early_reject(job, "acemath.early_reject")
    return job


def best_of(request: ChatRequest) -> int:
    """Candidates to make; 8 unless the caller says otherwise."""
    return int(_given(request.best_of, _SOLVE["n"].default))


def _check_together(request: ChatRequest) -> None:
    if (request.n or 1) > best_of(request):
        raise InvalidRequest(
            f"n: {request.n} choices of best_of = {best_of(request)} candidates; raise best_of or lower n", param="n"
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options: only with stream=true", param="stream_options")


def _max_tokens(request: ChatRequest) -> int:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ; send only max_completion_tokens", param="max_tokens"
        )
    return int(_given(new, _given(old, _SOLVE["max_tokens"].default)))


def _turns(messages: list[Message], limits: Limits) -> tuple[ChatMessage, ...]:
    turns = tuple(message.turn() for message in messages)
    limits.check_text(sum(len(turn["content"]) for turn in turns), "messages")
    last = f"messages.{len(turns) - 1}"
    if turns[-1]["role"] != "user":
        raise InvalidRequest("messages: the last turn must be the user's; it is the problem", param=f"{last}.role")
    if not turns[-1]["content"].strip():
        raise InvalidRequest(
            "messages: the last turn is blank; write the problem to be solved", param=f"{last}.content"
        )
    return turns


def _drop_neutral(fields: dict[str, object], neutral: dict[str, tuple[object, ...]], path: str) -> dict[str, object]:
    kept = {}
    for name, value in fields.items():
        if name not in neutral:
            kept[name] = value
        elif not _is_neutral(value, neutral[name]):
            raise InvalidRequest(
                f"{path}{name}: not supported; leave it out",
                param=f"{path}{name}",
                code=ErrorCode.UNSUPPORTED_PARAMETER,
            )
    return kept


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    # True == 1 and False == 0 in Python, but not in JSON.
    return value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
