"""httpx's transport for calls between services: HTTP/1.1 on asyncio's own connections, read by llhttp (`httptools`).

httpx's default, httpcore, is Python from the socket to the header (anyio, h11) and costs five times the CPU time of all
the rest of a call; a request for 64 candidates makes 65 calls. httptools is what our own server reads requests with.
GET and POST only: responses to other methods end elsewhere. What goes wrong is raised as httpx's own errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

import httpx

from acemath_gateway.adapters.http11_connection import Connection, Origin


class Http11Transport(httpx.AsyncBaseTransport):
    """Connections to replicas, used again while they are young.

    Args:
        max_connections: in use at once; who wants another one waits.
        max_idle: kept open without use, over all replicas.
        idle_seconds: a connection that was idle for longer is not used again.
    """

    def __init__(self, *, max_connections: int, max_idle: int, idle_seconds: float) -> None:
        self._places = asyncio.Semaphore(max_connections)
        self._max_idle, self._idle_seconds = max_idle, idle_seconds
        self._idle: deque[Connection] = deque()
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response's head; its body comes as it is read.

        Raises:
            httpx.TransportError: there is no response.
        """
        timeout = request.extensions.get("timeout", {})
        message = _message(request)
        await self._place(timeout.get("pool"))
        try:
            connection = await self._connection(_origin(request), timeout.get("connect"))
            try:
                return await self._ask(connection, message, timeout.get("read"))
            except BaseException:
                connection.abort()
                raise
        except BaseException:
            self._places.release()
            raise

    async def _place(self, seconds: float | None) -> None:
        if not self._places.locked():
            await self._places.acquire()  # at once: a timer would cost more
            return
        with _timed_out(httpx.PoolTimeout):
            async with asyncio.timeout(seconds):
                await self._places.acquire()

    async def _ask(self, connection: Connection, message: bytes, read_seconds: float | None) -> httpx.Response:
        connection.send(message)
        with _timed_out(httpx.ReadTimeout):
            async with asyncio.timeout(read_seconds):
                status, headers = await connection.head()
        return httpx.Response(status, headers=headers, stream=_Body(connection, read_seconds, self._release))

    async def aclose(self) -> None:
        """Close what is idle; a connection in use is closed with its response."""
        self._max_idle = 0
        while self._idle:
            self._idle.pop().abort()

    async def _connection(self, origin: Origin, seconds: float | None) -> Connection:
        return self._kept(origin) or await self._opened(origin, seconds)

    def _kept(self, origin: Origin) -> Connection | None:
        """The youngest idle connection to there; those that have become too old are closed."""
        since = time.monotonic() - self._idle_seconds
        while self._idle and (self._idle[0].idle_since < since or not self._idle[0].usable):
            self._idle.popleft().abort()
        for connection in reversed(self._idle):
            if connection.origin == origin and connection.usable:
                self._idle.remove(connection)
                return connection
        return None

    async def _opened(self, origin: Origin, seconds: float | None) -> Connection:
        scheme, host, port, name = origin
        loop, tls = asyncio.get_running_loop(), self._context() if scheme == "https" else None
        try:
            with _timed_out(httpx.ConnectTimeout):
                async with asyncio.timeout(seconds):
                    _, connection = await loop.create_connection(
                        lambda: Connection(origin), host, port, ssl=tls, server_hostname=name if tls else None
                    )
        except OSError as error:  # refused, unknown, or not who the certificate says
            raise httpx.ConnectError(str(error) or type(error).__name__) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _release(self, connection: Connection) -> None:
        """Take a connection back from a response that is over."""
        self._places.release()
        if not connection.may_be_used_again() or self._max_idle == 0:
            connection.abort()
            return
        self._idle.append(connection)
        while len(self._idle) > self._max_idle:
            self._idle.popleft().abort()


class _Body(httpx.AsyncByteStream):
    def __init__(
        self, connection: Connection, read_seconds: float | None, release: Callable[[Connection], None]
    ) -> None:
        self._connection, self._seconds, self._release = connection, read_seconds, release
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._piece()) is not None:
            yield piece

    async def _piece(self) -> bytes | None:
        if self._connection.has_piece:
            return await self._connection.piece()
        with _timed_out(httpx.ReadTimeout):
            async with asyncio.timeout(self._seconds):
                return await self._connection.piece()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._release(self._connection)


def _origin(request: httpx.Request) -> Origin:
    url = request.url
    port = url.port or (443 if url.scheme == "https" else 80)
    return url.scheme, url.host, port, str(request.extensions.get("sni_hostname") or url.host)


def _message(request: httpx.Request) -> bytes:
    """The request as bytes; a line break in a header would be somebody's second request."""
    if request.method not in ("GET", "POST"):
        raise httpx.UnsupportedProtocol(f"{request.method} is not sent between services")
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)]
    for name, value in request.headers.raw:
        if b"\r" in value or b"\n" in value or b"\0" in value or b"\n" in name:
            raise httpx.LocalProtocolError(f"header {name!r} holds a control character")
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join([*lines, b"\r\n", request.content])


@contextlib.contextmanager
def _timed_out(kind: type[httpx.TimeoutException]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise kind("timed out") from error
