"""Closing a connection so that the caller reads the answer: what it is still sending is thrown away first."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_web.context import header_of, set_header

PAUSE_SECONDS = 2.0
"""The longest wait for the next piece: a caller that reads the answer and leaves is noticed sooner than that."""
TOTAL_SECONDS = 5.0
"""The longest in all; well inside the time that a stopping service gives to its requests."""
MAX_BYTES = 64 * 2**20
"""The most that is read only to be thrown away; many times the limit of any service."""


class LingeringCloseMiddleware:
    """Reads on, and throws away, when a request was answered before its body was read; then closes the connection.

    A socket closed with unread bytes in it sends a reset, and a reset makes the caller's kernel drop the answer that
    it has not read yet: a caller that sends all of a long body before it reads would never learn why it was refused.
    This is what nginx does under `lingering_close` (`lingering_timeout` is the pause, `lingering_time` the total).

    Args:
        app: what answers. The end of its response is held back, its content is not: a caller may read it at once.
        pause_seconds: between two pieces of the body.
        total_seconds: for all of it.
        max_bytes: of all of it. At any of the three bounds the connection is closed as it is.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._app = app
        self._pause_seconds, self._total_seconds, self._max_bytes = pause_seconds, total_seconds, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application; linger when it left something unread."""
        if scope["type"] == "http" and _has_body(scope):
            await self._run(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread, held = True, False

        async def noted() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)  # neither the last piece nor a disconnect has it
            return message

        async def answered(message: Message) -> None:
            nonlocal held
            if unread and message["type"] == "http.response.start":
                # Otherwise the server would go on reading, without any bound, to keep the connection usable.
                set_header(message, b"connection", b"close")
            elif unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                held, message = True, {**message, "more_body": True}  # at the last one the server closes
            await send(message)

        await self._app(scope, noted, answered)
        if held:
            await self._discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, receive: Receive) -> None:
        """Return at the end of the body, at the end of the connection, or at a bound."""
        now = asyncio.get_running_loop().time
        left, end = self._max_bytes, now() + self._total_seconds
        with contextlib.suppress(TimeoutError):
            while left > 0:
                # One deadline, not `wait_for` in a deadline: that loses its cancellation when a piece comes with it.
                async with asyncio.timeout_at(min(end, now() + self._pause_seconds)):
                    message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _has_body(scope: Scope) -> bool:
    """Whether the request announces a body (RFC 9112, section 6.3)."""
    return header_of(scope, "transfer-encoding") is not None or header_of(scope, "content-length") not in (None, "0")
