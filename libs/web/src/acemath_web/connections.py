"""How many connections a service holds, and how long a caller may take over one request.

uvicorn bounds neither: `limit_concurrency` answers 503, to probes too, and leaves the connections open; no time-out
begins before a first response. A few thousand callers that send a byte now and then would use up the process' file
descriptors (the attack known as Slowloris), and `/livez` with them.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from acemath_core.errors import ErrorCode, TooLarge
from acemath_web.errors import error_response
from acemath_web.linger import MAX_BYTES, TOTAL_SECONDS

_log = logging.getLogger(__name__)
_SPARE_FILES = 256  # for what the service opens itself: files, Redis, other services
_SAY_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What callers may take.

    Attributes:
        connections: open at once; websockets count, only HTTP ones are closed to make room.
        receive_seconds: from the connection, or a request's first byte, to the last byte of the request.
        head_bytes: of one request's line and headers; the parsers have no bound that holds for all of them together.
    """

    connections: int = 1024
    receive_seconds: float = 60.0
    head_bytes: int = 64 * 1024


class GuardedProtocol(asyncio.Protocol):
    """One connection of uvicorn's HTTP protocol, within limits.

    When all places are taken, the new connection gets that of the oldest one on which nothing is being worked: first
    one that never sent a whole request, then one that waits for its next. So a caller that sends its request at once,
    such as a probe, is answered however many others dawdle. Only when every place is at work the new one is closed.

    Args:
        limits: see there.
        others: the guarded connections of this server, oldest first; shared by them.
        options: uvicorn's own, passed on to its protocol.
        inner: makes uvicorn's protocol.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        others: dict[GuardedProtocol, None],
        options: dict[str, Any],
        inner: Callable[..., Any] = AutoHTTPProtocol,
    ) -> None:
        self._limits, self._others = limits, others
        self._inner = inner(**options)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._refused = False

    @property
    def at_work(self) -> bool:
        """Whether a whole request is here and its answer is not finished."""
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    @property
    def fresh(self) -> bool:
        """Whether not even the head of a request was received yet."""
        return self._inner.cycle is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, somebody else's if need be."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._inner.connection_made(transport)
        if len(self._inner.connections) > self._limits.connections:
            self._make_room()
        self._others[self] = None
        self._arm()

    @property
    def in_head(self) -> bool:
        """Whether the request that comes next, or is coming, has not all of its headers here."""
        return self.fresh or bool(self._inner.cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Pass it on; of a head no more than its limit."""
        if self._refused:
            self._discard(len(data))
            return
        room = max(0, self._limits.head_bytes - self._head_bytes) if self.in_head else len(data)
        self._take(data[:room])
        if data[room:] and self._reads():
            if self.in_head:
                self._refuse_head()
            else:
                self._take(data[room:])

    def _take(self, data: bytes) -> None:
        """Hand data to the parser; see whether the request is complete now."""
        assert self._transport is not None
        was_head = self.in_head
        self._inner.data_received(data)
        self._head_bytes = self._head_bytes + len(data) if was_head and self.in_head else 0
        if self._transport.get_protocol() is not self:
            self._let_go()  # a websocket from here on
        elif self.at_work:
            self._disarm()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._let_go()
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        result: bool | None = self._inner.eof_received()
        return result

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()

    def end(self) -> None:
        """Close the connection as it is: who dawdles need not read what we would say."""
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def _make_room(self) -> None:
        idle = [other for other in self._others if not other.at_work]
        (next((other for other in idle if other.fresh), None) or next(iter(idle), self)).end()
        _say_full(self._limits.connections, self._inner.server_state)

    def _reads(self) -> bool:
        """Whether what comes next is for the HTTP parser."""
        assert self._transport is not None
        return self._transport.get_protocol() is self and not self._transport.is_closing()

    def _refuse_head(self) -> None:
        """Answer, and go on reading for a while: a socket closed with unread bytes makes the caller lose the answer."""
        assert self._transport is not None
        self._refused, self._head_bytes = True, 0
        self._transport.write(_head_refusal(self._limits.head_bytes))
        self._transport.write_eof()
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(TOTAL_SECONDS, self.end)

    def _discard(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_BYTES:
            self.end()

    def _arm(self) -> None:
        """Begin to count the time, unless it is being counted already."""
        assert self._transport is not None
        if self._timer is None and not self._transport.is_closing():
            self._timer = asyncio.get_running_loop().call_later(self._limits.receive_seconds, self.end)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        self._disarm()
        self._others.pop(self, None)


def guarded_protocol(limits: ConnectionLimits, inner: Callable[..., Any] = AutoHTTPProtocol) -> Any:
    """What `uvicorn.Config(http=…)` takes: makes the protocol of each connection of one server."""
    others: dict[GuardedProtocol, None] = {}

    def make(**options: Any) -> GuardedProtocol:
        return GuardedProtocol(limits, others, options, inner)

    return make


def within_file_limit(wanted: int) -> int:
    """How many of the wanted connections the process may have, after asking for file descriptors for all of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, max(soft - _SPARE_FILES, soft // 2))
    if allowed < wanted:
        _log.warning("at most %d connections instead of %d: the limit on open files is %d", allowed, wanted, soft)
    return allowed


def _head_refusal(limit: int) -> bytes:
    """The whole 431 (RFC 6585, section 5), which no application sends: there is no request yet to answer."""
    error = TooLarge(
        f"the request line and headers are over {limit} bytes; send shorter ones", code=ErrorCode.HEADERS_TOO_LARGE
    )
    response = error_response(error)
    lines = [b"%b: %b\r\n" % pair for pair in response.raw_headers]
    status = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    return b"".join([status, *lines, b"connection: close\r\n\r\n", bytes(response.body)])


def _say_full(limit: int, server_state: Any) -> None:
    """Once in a while: in a flood, a line for each connection would be a flood of its own."""
    now = time.monotonic()
    if now - getattr(server_state, "acemath_said_full", -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS:
        server_state.acemath_said_full = now
        _log.warning("all %d connections are taken; the oldest one that waits for its caller is closed", limit)
