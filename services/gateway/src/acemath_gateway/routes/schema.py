"""What `/openapi.json` says of routes that read their bodies themselves (`routes.body` says why they do)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from acemath_core.wire import ErrorBody


def json_body(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes and gives JSON, or gives server-sent events with `stream=true`."""
    ok = {"application/json": {"schema": inlined(answer)}, "text/event-stream": {"schema": {"type": "string"}}}
    failed = {"application/json": {"schema": inlined(ErrorBody)}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": inlined(request)}}},
        "responses": {
            "200": {"description": "the answer", "content": ok},
            "4XX": {"description": "the request is at fault", "content": failed},
            "5XX": {"description": "we are at fault, full or not ready", "content": failed},
        },
    }


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema with every `$ref` replaced by what it names: a reference would point elsewhere."""
    schema = model.model_json_schema()
    resolved = _resolve(schema, schema.pop("$defs", {}))
    assert isinstance(resolved, dict)
    return resolved


def _resolve(node: object, definitions: dict[str, Any]) -> object:
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    named = definitions.get(str(node.get("$ref", "")).rpartition("/")[2])
    beside = {key: _resolve(value, definitions) for key, value in node.items() if key != "$ref"}
    return {**_resolve(named, definitions), **beside} if named is not None else beside  # type: ignore[dict-item]
