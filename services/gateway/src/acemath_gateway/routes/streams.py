"""Server-sent events: bounded, kept alive, with an honest status while there still is one, over when the client is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from acemath_core.errors import ClientGone, InternalError, ServiceError
from acemath_gateway.routes.disconnect import beside, until_gone
from acemath_web.context import note_facts

_log = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 10.0
STATUS_GRACE_SECONDS = 2.0
"""How long the status line waits for a first event: what fails until then is a real 4xx or 5xx, no event in a 200."""
SEND_SECONDS = 30.0
"""A client that reads nothing for so long is gone. A whole answer's one send does not wait: `acemath_web.unread`."""
_QUEUED_EVENTS = 16


class LastEvent(bytes):
    """An event after which its reader has everything: it ends the response, and whoever leaves then has not gone early.

    What the generator still does after it, such as giving places back to Redis, is waited for but holds nobody up.
    """


def event_bytes(data: str, name: str | None = None) -> bytes:
    """One event. `data` is JSON, so it holds no line break."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.encode() + b"\n\n"


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def bounded(send: Send) -> Send:
    """`send`, which raises `ClientGone` when the client takes nothing for `SEND_SECONDS`."""

    async def sending(message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        except TimeoutError:
            raise ClientGone("the caller does not read its answer") from None

    return sending


class EventStream(Response):
    """Sends the events of a generator; leaving early, from either side, closes the generator.

    Args:
        events: the events as bytes.
        render_error: what a client that already reads the stream is told of an error.
        on_gone: told when the client left before the end.
        on_failure: told of an error that is sent as an event.
        headers: gives more response headers when the response starts.
        keep_alive_seconds: `keep_alive` is sent after so long without an event.
        keep_alive: a comment when left out; a stream of another kind may have nothing that says nothing.
        media_type: of a stream of another kind.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        render_error: Callable[[ServiceError], bytes],
        on_gone: Callable[[], None],
        on_failure: Callable[[ServiceError], None],
        headers: Callable[[], dict[str, str]],
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        keep_alive: bytes = KEEP_ALIVE,
        media_type: str | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._events, self._render_error, self._on_gone, self._more = events, render_error, on_gone, headers
        self._on_failure, self._keep_alive_seconds, self._keep_alive = on_failure, keep_alive_seconds, keep_alive
        self._started = self._whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the generator ends or the client leaves.

        Raises:
            ServiceError: the generator failed before anything was sent.
        """
        async with beside(self._stream(bounded(send))) as streaming, beside(until_gone(receive)) as gone:
            await asyncio.wait({gone, streaming}, return_when=asyncio.FIRST_COMPLETED)
            if self._whole:
                await asyncio.wait({streaming})
            if streaming.done() and not self._left_unread(streaming):
                streaming.result()
                return
        self._on_gone()
        if not self._started:
            raise ClientGone("the caller closed the connection")

    @staticmethod
    def _left_unread(streaming: asyncio.Task[None]) -> bool:
        return isinstance(streaming.exception(), ClientGone)

    async def _stream(self, send: Send) -> None:
        queue: asyncio.Queue[bytes | ServiceError | None] = asyncio.Queue(_QUEUED_EVENTS)
        async with beside(self._make(queue)) as making:
            item = await self._next(queue, STATUS_GRACE_SECONDS)
            if isinstance(item, ServiceError):
                raise item
            await self._start(send)
            while item is not None and not isinstance(item, LastEvent | ServiceError):
                await send(_piece(item))
                item = await self._next(queue, self._keep_alive_seconds)
            await self._end(send, item)
            await asyncio.wait({making})

    async def _end(self, send: Send, item: LastEvent | ServiceError | None) -> None:
        if isinstance(item, ServiceError):
            self._on_failure(item)
            note_facts(stream_error=item.code.value)  # the status was sent, and says 200
            item = LastEvent(self._render_error(item))
        self._whole = True
        await send(_piece(item or b"", more=False))

    async def _make(self, queue: asyncio.Queue[bytes | ServiceError | None]) -> None:
        """Fill the queue from a task of its own, so that waiting with a time limit does not disturb the generator."""
        end: ServiceError | None = None
        try:
            async with aclosing(self._events):
                async for item in self._events:
                    await queue.put(item)
        except ServiceError as error:
            end = error
        except Exception as error:
            _log.error("unhandled %s in a stream", type(error).__name__, exc_info=error)
            end = InternalError("an internal error; quote the x-request-id of this response when you report it")
        await queue.put(end)

    async def _next(
        self, queue: asyncio.Queue[bytes | ServiceError | None], seconds: float
    ) -> bytes | ServiceError | None:
        try:
            async with asyncio.timeout(seconds):
                return await queue.get()
        except TimeoutError:
            return self._keep_alive

    async def _start(self, send: Send) -> None:
        self._started = True
        self.headers.update(self._more())
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
