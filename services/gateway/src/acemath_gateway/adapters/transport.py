"""Calls between services on aiohttp's connections: what two services have no use for is switched off.

aiohttp reads answers with llhttp; a client in Python from the socket to the header (httpx on httpcore) costs five times
the processor time of all the rest of a call. No cookies, no redirects, no proxy of the environment, no compression.
"""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncIterator, Mapping

import aiohttp
import yarl

_CONTROL = frozenset("\r\n\0")
_FIRST_ANSWER = 200
_LARGE_BYTES = 256 * 1024
_CONNECT_SECONDS = 5.0  # refused is at once; this is for a host that is gone, not for one that is busy
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


class Transport:
    """Connections to replicas, used again while they are young.

    Args:
        max_connections: in use at once; who wants another one waits, as long as the caller lets it.
        idle_seconds: a connection that was idle for longer is not used again.
    """

    def __init__(self, *, max_connections: int, idle_seconds: float) -> None:
        self.max_connections, self._idle_seconds = max_connections, idle_seconds
        self._session: aiohttp.ClientSession | None = None

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

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made where the event loop runs."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.max_connections, keepalive_timeout=self._idle_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=_AUTOMATIC,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            )
        return self._session


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
