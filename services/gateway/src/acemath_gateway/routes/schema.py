"""What `/openapi.json` says of routes that read their bodies themselves (`routes.body` says why they do)."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from acemath_core.jobs import Job
from acemath_core.wire import MAX_CANDIDATES, ErrorBody, SolveRequest
from acemath_gateway.chat_wire import MODEL, NEUTRAL, NEUTRAL_IN_MESSAGE, ChatRequest
from acemath_gateway.solve_wire import Limits
from acemath_gateway.stopping import wave_sizes

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same key with the same body gets the first one's answer; refused with stream=true",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
}
_CACHE = {
    "name": "Cache-Control",
    "in": "header",
    "required": False,
    "description": "no-cache, no-store, max-age=N (RFC 9111), where answers are given again; all else changes nothing",
    "schema": {"type": "string"},
}
_CHAR = "[^\\u0000]"  # no text may hold a null character (`routes.body`)
FILE_KINDS = ("application/x-ndjson", "application/jsonl")
"""What a JSON Lines file may be called; there is no registered name."""
WEBHOOK_HEADER = "x-acemath-webhook"
_TOKENS = "prompt and max_tokens together must fit into the model's context, else 400 context_length_exceeded"


def solve_schema(limits: Limits) -> dict[str, Any]:
    """The JSON schema of a body of `/v1/solve` at a gateway with these limits."""
    schema = inlined(SolveRequest)
    fields = schema["properties"]
    fields["problem"] |= {"maxLength": limits.max_problem_chars, "pattern": f"^{_CHAR}*[^\\s\\u0000]{_CHAR}*$"}
    fields["max_tokens"]["description"] = _TOKENS
    _limit_deadline(fields["deadline_seconds"], limits)
    fields["deadline_seconds"]["default"] = limits.default_deadline_seconds
    _limit_early_reject(schema, limits)
    schema["allOf"] += _nothing_to_stop(limits)
    return schema


def chat_schema(limits: Limits) -> dict[str, Any]:
    """The JSON schema of a chat: the fields that are taken, and those that are accepted where they change nothing."""
    schema = inlined(ChatRequest)
    fields = schema["properties"]
    fields["model"]["enum"] = [MODEL]
    fields["messages"]["description"] = f"at most {limits.max_problem_chars} characters together; the last is a user's"
    fields["max_completion_tokens"]["description"] = fields["max_tokens"]["description"] = _TOKENS
    _limit_deadline(fields["acemath"]["properties"]["deadline_seconds"]["anyOf"][0], limits)
    _limit_early_reject(fields["acemath"], limits)
    fields |= _neutral_fields(NEUTRAL)
    fields["messages"]["items"]["properties"] |= _neutral_fields(NEUTRAL_IN_MESSAGE)
    _without_null_characters(schema)
    return schema


def _without_null_characters(node: object) -> None:
    """Say of every free text below that it holds none."""
    if isinstance(node, list):
        for item in node:
            _without_null_characters(item)
    elif isinstance(node, dict):
        if node.get("type") == "string" and not {"enum", "const", "pattern"} & node.keys():
            node["pattern"] = f"^{_CHAR}*$"
        for inner in node.values():
            _without_null_characters(inner)


def _limit_deadline(field: dict[str, Any], limits: Limits) -> None:
    field["maximum"] = limits.max_deadline_seconds
    field["description"] = f"{limits.default_deadline_seconds:g} when left out"


def _limit_early_reject(schema: dict[str, Any], limits: Limits) -> None:
    """Say where no candidate can be stopped by its score; such a body is refused."""
    field = schema["properties"]["early_reject"]
    field["description"] = (
        "refused where no candidate could be stopped: temperature 0, the selection majority, "
        f"max_tokens of {limits.rejection.after_tokens} or less, as many candidates wanted in the end as are made, "
        f"or waves of which {limits.rejection.keep:g}, rounded up, is all"
    )
    if not limits.live_scoring:
        field["enum"] = [False]
    schema["allOf"] = [_not_together(early_reject=True, selection="majority")]


def _nothing_to_stop(limits: Limits) -> list[dict[str, Any]]:
    """Bodies of `/v1/solve` that are refused, since they make no candidate that could be stopped."""
    counts = range(1, MAX_CANDIDATES + 1)
    whole = [n for n in counts if not limits.rejection.may_stop([n])]
    in_waves = [n for n in counts if not limits.rejection.may_stop(wave_sizes(n))]
    return [
        _not_together(early_reject=True, temperature=0),
        _not_with_early_reject(max_tokens={"type": "integer", "maximum": limits.rejection.after_tokens}),
        _not_with_early_reject(n={"enum": whole}),
        _not_with_early_reject(n={"enum": in_waves}, adaptive={"const": True}),
    ]


def _not_with_early_reject(**fields: dict[str, Any]) -> dict[str, Any]:
    """Not with values that fit these schemas, also where a field is left out and its default fits."""
    given = [name for name, schema in fields.items() if not _fits(SolveRequest.model_fields[name].default, schema)]
    fields["early_reject"] = {"const": True}
    return {"not": {"properties": fields, "required": ["early_reject", *given]}}


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if "maximum" in schema:
        return bool(value <= schema["maximum"])
    return value in schema.get("enum", [schema.get("const")])


def _not_together(**values: object) -> dict[str, Any]:
    fields = {name: {"const": value} for name, value in values.items()}
    return {"not": {"properties": fields, "required": list(fields)}}


def _neutral_fields(neutral: dict[str, tuple[object, ...]]) -> dict[str, Any]:
    said = "accepted only at these values, which change nothing"
    return {name: {"enum": [None, *values], "description": said} for name, values in neutral.items()}


def json_body(request: dict[str, Any], answer: type[BaseModel], event: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes and gives JSON, or gives server-sent events with `stream=true`.

    Args:
        request: the schema of the body.
        answer: what a whole answer is.
        event: the schema of one event (`event_schema`).
    """
    ok = {"application/json": {"schema": inlined(answer)}, "text/event-stream": {"schema": event}}
    return {
        "parameters": [_KEY, _CACHE],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "the answer", "content": ok},
            "4XX": failures("the request is at fault"),
            "5XX": failures("we are at fault, full or not ready"),
        },
    }


def event_schema(name: str, data: str | type[BaseModel]) -> dict[str, Any]:
    """One kind of server-sent event: its name, `message` where none is sent, and its data, in words or as JSON."""
    if isinstance(data, str):
        said: dict[str, Any] = {"type": "string", "description": data}
    else:
        said = {"type": "string", "contentMediaType": "application/json", "contentSchema": inlined(data)}
    fields: dict[str, Any] = {"event": {"const": name}, "data": said}
    return {"type": "object", "properties": fields, "required": ["event", "data"]}


def jobs_schema(limits: Limits, *, webhooks: bool) -> dict[str, Any]:
    """`openapi_extra` of `POST /v1/jobs` at a gateway with these limits, with or without webhooks."""
    line = solve_schema(limits)
    line["properties"] |= {"stream": {"enum": [False]}, "priority": {"enum": ["batch"]}}
    file = {"type": "string", "description": "one JSON object a line, each with the fields of a single problem"}
    content = {"application/json": {"schema": line}} | {kind: {"schema": file} for kind in FILE_KINDS}
    webhook = {
        "name": WEBHOOK_HEADER,
        "in": "header",
        "required": False,
        "description": "URL that is told of the job's end; its host must be one that this gateway allows",
        "schema": {"type": "string", "format": "uri", "maxLength": 2048},
    }
    said = job_schema()
    said["parameters"] = [{**_KEY, "description": "the same key with the same lines gives the same job"}]
    said["parameters"] += [webhook] if webhooks else []
    said["requestBody"] = {"required": True, "content": content}
    said["responses"]["202"] = {
        "description": "every line was accepted",
        "content": {"application/json": {"schema": inlined(Job)}},
    }
    return said


def job_schema() -> dict[str, Any]:
    """`openapi_extra` of a route of jobs: what its errors look like."""
    return {
        "responses": {
            "4XX": failures("the request is at fault"),
            "5XX": failures("we are at fault, full or not ready"),
        }
    }


def stream_schema(kind: str, event: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route of jobs that streams `kind`: lines, or events with this schema."""
    said, schema = job_schema(), event or {"type": "string"}
    said["responses"]["200"] = {"description": "as far as there is", "content": {kind: {"schema": schema}}}
    return said


def failures(description: str) -> dict[str, Any]:
    """An entry of `responses`: an error in the one shape."""
    return {"description": description, "content": {"application/json": {"schema": inlined(ErrorBody)}}}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema with every `$ref` replaced by what it names: a reference would point elsewhere."""
    schema = _schema_of(model)
    resolved = _resolve({key: value for key, value in schema.items() if key != "$defs"}, schema.get("$defs", {}))
    assert isinstance(resolved, dict)
    return resolved


@cache  # every route's failures have the same one
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _resolve(node: object, definitions: dict[str, Any]) -> object:
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    named = definitions.get(str(node.get("$ref", "")).rpartition("/")[2])
    beside = {key: _resolve(value, definitions) for key, value in node.items() if key != "$ref"}
    return {**_resolve(named, definitions), **beside} if named is not None else beside  # type: ignore[dict-item]
