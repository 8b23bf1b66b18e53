"""Calls between services on aiohttp's connections: what two services have no use for is switched off.

aiohttp reads answers with llhttp; a client in Python from the socket to the header (httpx on httpcore) costs five times
the processor time of all the rest of a call. No cookies, no redirects, no proxy of the environment, no compression.
"""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

import aiohttp
import yarl

_CONTROL = frozenset("\r\n\0")
_FIRST_ANSWER, _FIRST_REDIRECT, _FIRST_ERROR = 200, 300, 400
_LARGE_BYTES = 256 * 1024
_CONNECT_SECONDS = 5.0  # refused is at once; this is for a host that is gone, not for one that is busy
_CLOSING_SECONDS = 0.5  # for the last word of a websocket that broke the protocol
_AUTOMATIC = ("accept", "accept-encoding", "content-type", "user-agent")  # whoever calls says what it needs


class Answer:
    """The head of an answer, and its body as it comes.

    Attributes:
        status: 200 or above.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    def header(self, name: str) -> str | None:
        """One header; None where there is none."""
        return self._response.headers.get(name)

    def pieces(self) -> AsyncIterator[bytes]:
        """The body; raises `aiohttp.ClientError` when it breaks off."""
        return self._response.content.iter_any()

    def close(self) -> None:
        """Give the connection back; close it when the rest of the answer was not read, which cancels the work."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Redirected(aiohttp.ClientError):
    """A websocket was to be opened elsewhere; `status` is the answer's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Socket(aiohttp.ClientWebSocketResponse[Literal[True]]):
    """A websocket."""

    def abort(self) -> None:
        """Close the connection without a word, whatever waits to be sent; again if need be."""
        self._writer.transport.abort()  # not the response's, which has none once aiohttp has begun to close it
        self._response.close()


class Transport:
    """Connections to replicas, used again while they are young.

    Args:
        max_connections: in use at once; who wants another one waits, as long as the caller lets it.
        idle_seconds: a connection that was idle for longer is not used again.
    """

    def __init__(self, *, max_connections: int, idle_seconds: float) -> None:
        self.max_connections, self._idle_seconds = max_connections, idle_seconds
        self._session: aiohttp.ClientSession | None = None
        self._sockets: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, server_name: str | None = None
    ) -> Answer:
        """The answer's head, however long it takes; close the answer when done with it.

        Args:
            method: of HTTP.
            url: where to.
            headers: all that are sent, but for the host and the body's length.
            body: sent as it is.
            server_name: who must stand in the certificate, where it is not the URL's host.

        Raises:
            aiohttp.ClientError: there is no answer.
        """
        _refuse_control_characters(headers)
        response = await self._opened().request(
            method, _parsed(url), headers=headers, data=_body(body), allow_redirects=False, server_hostname=server_name
        )
        if response.status < _FIRST_ANSWER:
            response.close()
            raise aiohttp.ClientPayloadError(f"status {response.status} is not an answer")
        return Answer(response)

    async def websocket(
        self, url: str, headers: Mapping[str, str], *, max_message_bytes: int, server_name: str | None = None
    ) -> Socket:
        """A websocket, opened there and nowhere else; `abort` it when done with it.

        Args:
            url: where to; http or https.
            headers: what the handshake shows besides its own.
            max_message_bytes: a longer message ends it.
            server_name: as of `send`.

        Raises:
            aiohttp.ClientError: it is not to be had; `WSServerHandshakeError` and `Redirected` say its status.
        """
        _refuse_control_characters(headers)
        if self._sockets is None:
            # Whoever asks bounds them. The connection of a refused handshake is not used for another one.
            self._sockets = _session(aiohttp.TCPConnector(limit=0, force_close=True), (_stay,))
        opened = await self._sockets.ws_connect(
            _parsed(url),
            headers=headers,
            server_hostname=server_name,
            max_msg_size=max_message_bytes,
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSING_SECONDS),
        )
        assert isinstance(opened, Socket)
        return opened

    async def close(self) -> None:
        """Close every connection."""
        for session in (self._session, self._sockets):
            if session is not None:
                await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made where the event loop runs."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self.max_connections, keepalive_timeout=self._idle_seconds)
            self._session = _session(connector)
        return self._session


def _session(
    connector: aiohttp.TCPConnector, middlewares: Sequence[aiohttp.ClientMiddlewareType] = ()
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=_AUTOMATIC,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        middlewares=middlewares,
        ws_response_class=Socket,
    )


async def _stay(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Go nowhere but where we were told to go: `ws_connect` follows redirects, with our key."""
    response = await handler(request)
    if _FIRST_REDIRECT <= response.status < _FIRST_ERROR:
        response.close()
        raise Redirected(response.status)
    return response


@functools.lru_cache(4096)
def _parsed(url: str) -> yarl.URL:
    """A URL of the few that there are, as it is written."""
    return yarl.URL(url, encoded=True)


def _body(content: bytes) -> bytes | io.BytesIO | None:
    """A large one is a file, which is written piece by piece so that others have their turns between."""
    return io.BytesIO(content) if len(content) > _LARGE_BYTES else content or None


def _refuse_control_characters(headers: Mapping[str, str]) -> None:
    """A line break in a header would be somebody's second request."""
    for name, value in headers.items():
        if not _CONTROL.isdisjoint(value):
            raise aiohttp.ClientPayloadError(f"header {name!r} holds a control character")
