"""What `/openapi.json` says of every service: how it knows its callers, and that a bad request is a 400 here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI

from acemath_web.auth import PROBE_PATHS

_BEARER = {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer <key>"}


def publish(app: FastAPI, *, keyed: bool, open_paths: Collection[str]) -> None:
    """Make the application's document one of what it does, not of what its framework would do.

    Args:
        app: whose document.
        keyed: whether callers need a key.
        open_paths: paths that need none, besides the probes.
    """
    plain = app.openapi

    def document() -> dict[str, Any]:
        made = plain()  # made once by FastAPI, and changed in place once
        if "securitySchemes" not in made.setdefault("components", {}):
            _drop_422(made)
            _drop_null_parameters(made)
            _add_keys(made, keyed, PROBE_PATHS | frozenset(open_paths))
        return made

    app.openapi = document  # type: ignore[method-assign]


def _drop_422(document: dict[str, Any]) -> None:
    """Our handlers answer 400 where FastAPI says 422."""
    for operation in _operations(document):
        unlike = operation.get("responses", {}).pop("422", None)
        if unlike is not None and not {"400", "4XX"} & set(operation["responses"]):
            operation["responses"]["400"] = {"description": "the request is at fault"}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"].get("schemas", {}).pop(name, None)


def _drop_null_parameters(document: dict[str, Any]) -> None:
    """A parameter that is not given is left out: there is no null in a URL or a header."""
    for operation in _operations(document):
        for parameter in operation.get("parameters", []):
            schema = parameter.get("schema", {})
            kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
            if len(kinds) == 1:
                del schema["anyOf"]
                schema |= kinds[0]


def _add_keys(document: dict[str, Any], keyed: bool, open_paths: Collection[str]) -> None:
    document["components"]["securitySchemes"] = {"bearer": dict(_BEARER)}
    document["security"] = [{"bearer": []}] if keyed else [{}, {"bearer": []}]
    for path, methods in document["paths"].items():
        if path in open_paths:
            for operation in methods.values():
                operation["security"] = []
        elif keyed:
            for operation in methods.values():
                _add_refusals(operation["responses"])


def _add_refusals(responses: dict[str, Any]) -> None:
    """What a caller without a key, or with one that may not do this, gets."""
    if "4XX" not in responses:
        error = {"application/json": {"schema": {"type": "object", "required": ["error"]}}}
        responses.setdefault("401", {"description": "no key, or an unknown one", "content": error})
        responses.setdefault("403", {"description": "a key that may not do this", "content": error})


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]
