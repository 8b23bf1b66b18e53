"""What is known of the request that a task works for: its id, and the facts that its line in the log will have.

The id is accepted when it is harmless, made when absent, echoed on every response, passed on to every hop.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "x-request-id"
_HARMLESS = re.compile(r"^[\w.:-]{1,128}$", re.ASCII)  # it goes into logs and headers
Fact = str | int | float | bool | None
_current: ContextVar[str | None] = ContextVar("acemath_request_id", default=None)
_facts: ContextVar[dict[str, Fact] | None] = ContextVar("acemath_request_facts", default=None)

_MAX_FACTS = 16
_MAX_FACT_CHARS = 128
_TAKEN = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "time", "level", "logger", "request_id", "exception"),
    *("method", "route", "status", "seconds", "code"),
}


def current_request_id() -> str | None:
    """The id of the request that this task works for, or None outside a request."""
    return _current.get()


@contextmanager
def request_named(request_id: str | None) -> Iterator[None]:
    """Work for another request than the one that the connection was made for, where it has an id."""
    token = _current.set(request_id or _current.get())
    try:
        yield
    finally:
        _current.reset(token)


def note_facts(**facts: Fact) -> None:
    """Add facts to the line that the log gets when the request that this task works for has ended.

    They are names, counts and durations, such as `release` or `n`: never a user's text, never a key. Sixteen fit into
    a line; of a longer text the first 128 characters do. Outside a request nothing happens.

    Raises:
        ValueError: a name that every line, or the logging library, already uses for something else.
    """
    if not _TAKEN.isdisjoint(facts):
        raise ValueError(f"a line in the log has a {min(_TAKEN & set(facts))!r} of its own; choose another name")
    noted = _facts.get()
    if noted is None:
        return
    for name, value in facts.items():
        if name in noted or len(noted) < _MAX_FACTS:
            noted[name] = value[:_MAX_FACT_CHARS] if isinstance(value, str) else value


def current_facts() -> dict[str, Fact]:
    """What was noted so far of the request that this task works for."""
    return dict(_facts.get() or {})


def header_of(scope: Scope, name: str) -> str | None:
    """One header of an ASGI scope, decoded as Latin-1 as HTTP has it."""
    wanted = name.lower().encode()
    for key, value in scope.get("headers", ()):
        if key == wanted:
            found: str = value.decode("latin-1")
            return found
    return None


def set_header(message: Message, name: bytes, value: bytes) -> None:
    """Put one header on the start of an answer, in place of any of that name.

    Args:
        message: `http.response.start`.
        name: in small letters.
        value: as it is sent.
    """
    message["headers"] = [pair for pair in message.get("headers", ()) if pair[0] != name] + [(name, value)]


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
        request_id = given if given and _HARMLESS.match(given) else os.urandom(16).hex()
        token, facts = _current.set(request_id), _facts.set({})

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_header(message, b"x-request-id", request_id.encode())
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _facts.reset(facts)
            _current.reset(token)
