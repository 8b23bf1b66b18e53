"""httpx's transport for calls between services, on aiohttp's connections.

httpx's default, httpcore, is Python from the socket to the header (anyio, h11) and costs five times the CPU time of all
the rest of a call; a request for 64 candidates makes 65 calls. aiohttp reads answers with llhttp. Requests and errors
stay httpx's, so that callers and tests know one vocabulary.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Iterator

import aiohttp
import httpx
import yarl

_CONTROL = frozenset("\r\n\0")
_FIRST_ANSWER = 200
_LARGE_BYTES = 256 * 1024


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Connections to replicas, used again while they are young.

    Args:
        max_connections: in use at once; who wants another one waits, as long as the caller lets it.
        idle_seconds: a connection that was idle for longer is not used again.
    """

    def __init__(self, *, max_connections: int, idle_seconds: float) -> None:
        self._max_connections, self._idle_seconds = max_connections, idle_seconds
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response's head; its body comes as it is read.

        Raises:
            httpx.TransportError: there is no response.
        """
        timeout = request.extensions.get("timeout", {})
        limits = aiohttp.ClientTimeout(sock_connect=timeout.get("connect"), sock_read=timeout.get("read"))
        with _as_httpx(request):
            found = await self._opened().request(
                request.method,
                yarl.URL(str(request.url), encoded=True),
                headers=_headers(request),
                data=_body(request),
                allow_redirects=False,
                timeout=limits,
                server_hostname=request.extensions.get("sni_hostname"),
            )
        if found.status < _FIRST_ANSWER:
            found.close()
            raise httpx.RemoteProtocolError(f"status {found.status} is not an answer", request=request)
        return httpx.Response(found.status, headers=list(found.raw_headers), stream=_Body(found, request))

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made where the event loop runs: no cookies, no proxy of the environment, bodies as they come."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=self._idle_seconds)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response, self._request = response, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for piece in self._response.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        """Give the connection back; close it when the rest of the answer was not read, which cancels the work."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _body(request: httpx.Request) -> bytes | io.BytesIO | None:
    """Its content; a large one as a file, which is written piece by piece so that others have their turns between."""
    content = request.content
    return io.BytesIO(content) if len(content) > _LARGE_BYTES else content or None


def _headers(request: httpx.Request) -> list[tuple[str, str]]:
    """The request's; a line break in one would be somebody's second request."""
    headers = list(request.headers.multi_items())
    for name, value in headers:
        if not _CONTROL.isdisjoint(value) or not _CONTROL.isdisjoint(name):
            raise httpx.LocalProtocolError(f"header {name!r} holds a control character", request=request)
    return headers


@contextlib.contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """aiohttp's errors as httpx's; what is neither is a bug and stays itself."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout("no connection in time", request=request) from error
    except aiohttp.ServerTimeoutError as error:
        raise httpx.ReadTimeout("no answer in time", request=request) from error
    except aiohttp.ClientConnectorError as error:  # refused, unknown, or not who the certificate says
        raise httpx.ConnectError(type(error).__name__, request=request) from error
    except aiohttp.ClientError as error:
        raise httpx.RemoteProtocolError(type(error).__name__, request=request) from error
