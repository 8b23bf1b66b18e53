"""One HTTP/1.1 connection as a client sees it: bytes in, a head and pieces of a body out; parsed by llhttp."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import cast

import httptools
import httpx

MAX_HEAD_BYTES = 64 * 1024
_MAX_BUFFERED_BYTES = 256 * 1024
Origin = tuple[str, str, int, str]
"""Scheme, host, port, and the name that TLS asks for."""


class Connection(asyncio.Protocol):
    """One connection: a request, its response to the end, then the next.

    Args:
        origin: what it leads to.

    Attributes:
        idle_since: when its last response was over, by the monotonic clock.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin, self.idle_since = origin, 0.0
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._asked = False
        self._begin()

    def _begin(self) -> None:
        """Be ready for a response."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes, self._buffered = 0, 0
        self._pieces: deque[bytes] = deque()
        self._head_done = self._whole = self._keep = self._paused = self._surplus = self._refused = False

    # ------------------------------------------------------------------------------------------------ for the transport

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    def may_be_used_again(self) -> bool:
        """Whether the response is over and the connection outlives it; it counts as idle from now on."""
        again = self.usable and self._whole and self._keep and not self._pieces
        self._asked, self.idle_since = False, time.monotonic()
        return again

    def send(self, message: bytes) -> None:
        """Send a request; nothing of the response before it may be left."""
        assert self._transport is not None
        self._begin()
        self._asked = True
        self._transport.write(message)

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers.

        Raises:
            httpx.TransportError: the connection broke, or what came is not HTTP.
        """
        while not self._head_done:
            await self._more()
        if self._refused and self._error is not None:
            raise self._error
        return self._parser.get_status_code(), self._headers

    @property
    def has_piece(self) -> bool:
        """Whether `piece` need not wait."""
        return bool(self._pieces) or self._whole

    async def piece(self) -> bytes | None:
        """The next bytes of the body; None after the last. Raises as `head`."""
        while not self._pieces:
            if self._whole:
                return None
            await self._more()
        piece = b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        """Close it as it is."""
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: httpx.TransportError) -> None:
        self._error = self._error or error
        self.abort()
        self._wake()

    # ------------------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        """Parse what came; nothing may come that nobody asked for."""
        self._surplus = self._surplus or not self._asked or self._whole
        if not self._head_done:
            self._head_bytes += len(data)
        problem = "sent bytes that nobody asked for" if self._surplus else self._parse(data)
        if problem is not None:
            self._refused = True  # a head that came with it is not trusted either
            self._fail(httpx.RemoteProtocolError(f"the server {problem}"))
            return
        if self._buffered > _MAX_BUFFERED_BYTES and not self._paused and self.usable:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _parse(self, data: bytes) -> str | None:
        """Hand data to the parser; what is wrong with it, if anything is."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            return f"answered with something other than HTTP/1.1 ({type(error).__name__})"
        if self._surplus:
            return "sent more than one answer"
        named = sum(len(name) + len(value) for name, value in self._headers)
        if named > MAX_HEAD_BYTES or (not self._head_done and self._head_bytes > MAX_HEAD_BYTES):
            return f"sent a head of over {MAX_HEAD_BYTES} bytes"
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """An end without a length is the end of the body; any other is a failure, unless nobody waits."""
        if self._head_done and not self._whole and exc is None and self._ends_with_the_connection():
            self._whole = True
        elif not self._whole:
            self._error = self._error or _lost(exc)
        self._wake()

    def _ends_with_the_connection(self) -> bool:
        return not {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in self._headers}

    # -------------------------------------------------------------------------------------------------------- httptools

    def on_message_begin(self) -> None:
        """An answer begins; a second one was not asked for."""
        self._surplus = self._surplus or self._whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is here, unless it is that of an interim response (RFC 9110, section 15.2)."""
        self._head_done = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """The response is over; an interim one is forgotten."""
        if self._head_done:
            self._whole, self._keep = True, self._parser.should_keep_alive()
        else:
            self._headers = []


def _lost(error: Exception | None) -> httpx.TransportError:
    if error is None:
        return httpx.RemoteProtocolError("the server closed the connection before its answer was complete")
    return httpx.ReadError(str(error) or type(error).__name__)
