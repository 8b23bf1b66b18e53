"""The request id: accepted when it is harmless, made when absent, echoed on every response, passed on to every hop."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "x-request-id"
_HARMLESS = re.compile(r"^[\w.:-]{1,128}$", re.ASCII)  # it goes into logs and headers
_current: ContextVar[str | None] = ContextVar("acemath_request_id", default=None)


def current_request_id() -> str | None:
    """The id of the request that this task works for, or None outside a request."""
    return _current.get()


def header_of(scope: Scope, name: str) -> str | None:
    """One header of an ASGI scope, decoded as Latin-1 as HTTP has it."""
    wanted = name.lower().encode()
    return next((value.decode("latin-1") for key, value in scope.get("headers", []) if key == wanted), None)


class RequestIdMiddleware:
    """Gives every request an id and puts it on every response, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application with the request id in the context."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = header_of(scope, REQUEST_ID_HEADER)
        request_id = given if given and _HARMLESS.match(given) else uuid.uuid4().hex
        token = _current.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _current.reset(token)
