"""The key as the password of HTTP basic authentication, for clients whose only setting is a URL.

OpenRLHF's and verl's HTTP clients send no header of the user's, but `http://any:KEY@host/…` makes every HTTP library
send the key this way. It is the same key, checked by the same `BearerMiddleware`, which runs inside this one.
"""

from __future__ import annotations

import base64
import binascii

from starlette.types import ASGIApp, Receive, Scope, Send

from acemath_web.context import header_of


class BasicKeyMiddleware:
    """Turns `Authorization: Basic <any user>:<key>` into `Authorization: Bearer <key>`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a header that is no basic authentication stays as it is, and is refused inside."""
        key = _password(header_of(scope, "authorization")) if scope["type"] in ("http", "websocket") else None
        if key is not None:
            others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            scope = {**scope, "headers": [*others, (b"authorization", b"Bearer " + key)]}
        await self._app(scope, receive, send)


def _password(header: str | None) -> bytes | None:
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, found, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return password if found else None
