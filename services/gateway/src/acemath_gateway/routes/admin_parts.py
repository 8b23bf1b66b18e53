"""What the admin routes are given, who may call them, and what `/openapi.json` says of each of them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from acemath_core.wire import ErrorBody
from acemath_gateway.keys.access import KeyScope, requires
from acemath_gateway.keys.book import KeyBook
from acemath_gateway.keys.store import KeyStore
from acemath_gateway.promotion import ChannelChanges
from acemath_gateway.routes.schema import inlined
from acemath_web.auth import Caller

Administrator = Annotated[Caller, Depends(requires(KeyScope.ADMIN))]
"""The caller of an admin route, on loopback too."""


@dataclass(frozen=True, slots=True)
class AdminParts:
    """The gateway as its admin routes see it; a request finds it at `app.state.admin`.

    Attributes:
        keys: where keys are kept.
        book: what this gateway remembers of them.
        channels: changes where channels point.
    """

    keys: KeyStore
    book: KeyBook
    channels: ChannelChanges


def admin_parts(request: Request) -> AdminParts:
    """The admin parts of the application that serves this request."""
    parts = request.app.state.admin
    assert isinstance(parts, AdminParts)
    return parts


def admin_schema(body: type[BaseModel] | None = None, absent: str | None = None) -> dict[str, Any]:
    """`openapi_extra` of an admin route: always a key, the body that it reads itself, and what its errors look like.

    Args:
        body: None where it reads none.
        absent: what is not there where it answers 404; None where it never does.
    """
    failed = {"application/json": {"schema": inlined(ErrorBody)}}
    said: dict[str, Any] = {
        "security": [{"bearer": []}],
        "responses": {
            "401": {"description": "no key, or an unknown one", "content": failed},
            "403": {"description": "the key lacks the scope admin", "content": failed},
            "4XX": {"description": "the request is at fault", "content": failed},
            "5XX": {"description": "we are at fault, or not ready", "content": failed},
        },
    }
    if absent is not None:
        said["responses"]["404"] = {"description": absent, "content": failed}
    if body is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": inlined(body)}}}
    return said
