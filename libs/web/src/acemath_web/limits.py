"""The largest body a service reads; what is longer is refused before it is held in memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_core.errors import TooLarge
from acemath_web.context import header_of
from acemath_web.errors import error_response


class BodyLimitMiddleware:
    """Answers 413 to a body over `max_bytes`, whether its length is announced or not.

    It leaves the rest of that body unread; `LingeringCloseMiddleware` around it sees to the connection.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while its body stays within the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = header_of(scope, "content-length") or "0"
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        await self._run_counted(scope, receive, send)

    async def _run_counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen, started = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if seen > self._max_bytes and not started:
                return  # the framework turns whatever stops its reading into a 400 of its own
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLarge:
            if started:
                raise
        if seen > self._max_bytes and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(self._too_large())(scope, receive, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._max_bytes} bytes; send a shorter one, or in several requests")
