"""What `/openapi.json` says of this service beyond its routes: the deadline header, and the frames of the WebSocket."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from acemath_core.deadline import DEADLINE_HEADER
from acemath_reward.live import routes
from acemath_reward.live.frames import ClientFrame, ServerFrame

WEBSOCKETS = "x-websockets"
"""OpenAPI has no words for them; a tool that does not know the name leaves it alone."""

_SCHEMAS = "#/components/schemas/Live{model}"
_DEADLINE = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "number", "minimum": 0},
    "description": "milliseconds that are left until nobody waits any more, then 504 `deadline_exceeded`; it can only"
    " shorten the service's own limit (`ACEMATH_REWARD__DEFAULT_DEADLINE_SECONDS`)",
}
_ABOUT = f"`WS {routes.LIVE_PATH}`, which scores candidates while they are written, is under `{WEBSOCKETS}`."


def describe(app: FastAPI) -> None:
    """Add to the application's document what its framework does not know. Every POST of it honours the header."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        made = plain()  # made once by FastAPI, and changed in place once
        if WEBSOCKETS not in made:
            made["info"]["description"] = _ABOUT
            for methods in made["paths"].values():
                if "post" in methods:
                    methods["post"].setdefault("parameters", []).append(_DEADLINE)
            made[WEBSOCKETS] = {routes.LIVE_PATH: _live(made["components"]["schemas"])}
        return made

    app.openapi = document  # type: ignore[method-assign]


def _live(schemas: dict[str, Any]) -> dict[str, Any]:
    """The WebSocket: how it is used, and which frames either side sends; their schemas go among the others."""
    return {
        "summary": "Candidates that are scored while they are written",
        "description": routes.__doc__,
        "messages": {
            "client": _frames(TypeAdapter(ClientFrame).json_schema(ref_template=_SCHEMAS), schemas),
            "server": _frames(
                TypeAdapter(ServerFrame).json_schema(ref_template=_SCHEMAS, mode="serialization"), schemas
            ),
        },
    }


def _frames(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    for name, frame in schema.pop("$defs").items():
        schemas[_SCHEMAS.rpartition("/")[2].format(model=name)] = frame
    return schema
