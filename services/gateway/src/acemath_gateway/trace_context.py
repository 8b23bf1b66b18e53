"""W3C trace context: what a caller sends goes on to policy and reward, also where no traces are made here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from acemath_web.context import header_of

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_STATE = re.compile(r"[\x20-\x7e]{1,512}", re.ASCII)
_carried: ContextVar[Mapping[str, str] | None] = ContextVar("acemath_gateway_trace", default=None)


def trace_headers() -> Mapping[str, str]:
    """`traceparent`, and `tracestate` where there is one, of the trace that this task works for; else nothing."""
    return _carried.get() or {}


@contextmanager
def carrying(headers: Mapping[str, str]) -> Iterator[None]:
    """Calls that are made in the block, and in tasks that begin in it, carry these headers."""
    token = _carried.set(headers)
    try:
        yield
    finally:
        _carried.reset(token)


class TraceContextMiddleware:
    """Takes the trace context from a request; one that is not well-formed is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application with the caller's trace in the context."""
        headers = _given(scope) if scope["type"] == "http" else {}
        if not headers:
            await self._app(scope, receive, send)
            return
        with carrying(headers):
            await self._app(scope, receive, send)


def _given(scope: Scope) -> dict[str, str]:
    parent = header_of(scope, "traceparent")
    if parent is None or not _PARENT.fullmatch(parent):
        return {}
    state = header_of(scope, "tracestate")
    return {"traceparent": parent} | ({"tracestate": state} if state and _STATE.fullmatch(state) else {})
