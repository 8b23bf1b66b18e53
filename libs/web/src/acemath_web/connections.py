"""How many connections a service holds, how long a caller may take over one request, and what is said to no request.

uvicorn bounds neither: `limit_concurrency` answers 503, to probes too, and leaves the connections open; no time-out
begins before a first response, nor behind an answer that nobody reads. A few thousand callers that send a byte now and
then would use up the process' file descriptors (the attack known as Slowloris), and `/livez` with them. And what is no
HTTP at all it answers in plain text.
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

from acemath_core.errors import ErrorCode, InvalidRequest, ServiceError, TooLarge
from acemath_web.errors import error_response
from acemath_web.linger import MAX_BYTES, TOTAL_SECONDS
from acemath_web.unread import UnreadWatch

_log = logging.getLogger(__name__)
_SPARE_FILES = 256  # for what the service opens itself: files, Redis, other services
_SAY_AGAIN_SECONDS = 10.0
_MALFORMED = (
    "this is no HTTP/1.1 request: its line, its headers or the framing of its body cannot be read; send plain HTTP/1.1 "
    "here, without TLS"
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What callers may take.

    Attributes:
        connections: open at once; websockets count, only HTTP ones are closed to make room.
        receive_seconds: from the connection, or a request's first byte, to the last byte of the request.
        head_bytes: of one request's line and headers; the parsers have no bound that holds for all of them together.
        send_seconds: in which a caller takes some of the answer that waits for it (`UnreadWatch`).
    """

    connections: int = 1024
    receive_seconds: float = 60.0
    head_bytes: int = 64 * 1024
    send_seconds: float = 60.0


class GuardedProtocol(asyncio.Protocol):
    """One connection of uvicorn's HTTP protocol, within limits.

    When all places are taken, the new connection gets that of the oldest one on which nothing is being worked: first
    one that never sent a whole request, then one that waits for its next. So a caller that sends its request at once,
    such as a probe, is answered however many others dawdle. Only when every place is at work the new one is closed.

    Args:
        limits: see there.
        others: the guarded connections of this server, oldest first; shared by them.
        options: uvicorn's own, passed on to its protocol.
        inner: makes uvicorn's protocol, one that tells of what it cannot read.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        others: dict[GuardedProtocol, None],
        options: dict[str, Any],
        inner: Callable[..., Any],
    ) -> None:
        self._limits, self._others = limits, others
        self._inner = inner(**options)
        self._inner.on_malformed = self._refuse_malformed
        self._transport: asyncio.Transport | None = None
        self._unread: UnreadWatch | None = None
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
        self._unread = UnreadWatch(self._transport, self._limits.send_seconds, self.end)
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
        elif self._refused:
            return
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
        if self._unread is not None:
            self._unread.full()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._unread is not None:
            self._unread.drained()
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
        return self._transport.get_protocol() is self and not (self._refused or self._transport.is_closing())

    def _refuse_head(self) -> None:
        limit = self._limits.head_bytes
        message = f"the request line and headers are over {limit} bytes; send shorter ones"
        status = b"431 Request Header Fields Too Large"  # RFC 6585, section 5
        self._refuse(status, TooLarge(message, code=ErrorCode.HEADERS_TOO_LARGE))

    def _refuse_malformed(self) -> None:
        """Answer, unless an answer was begun or is owed to a request before: ours could not be told from that one."""
        cycle = self._inner.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body:
                self.end()
                return
            cycle.disconnected = True  # so that nobody else answers a request whose body is malformed
            cycle.message_event.set()
        self._refuse(b"400 Bad Request", InvalidRequest(_MALFORMED))

    def _refuse(self, status: bytes, error: ServiceError) -> None:
        """Answer, and go on reading for a while: a socket closed with unread bytes makes the caller lose the answer."""
        assert self._transport is not None
        self._refused, self._head_bytes = True, 0
        self._transport.write(_whole(status, error))
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
        if self._unread is not None:
            self._unread.stop()


class _TellsOfMalformed:
    """Goes before one of uvicorn's protocols, whose own answer would be plain text."""

    on_malformed: Callable[[], None]

    def send_400_response(self, _: str) -> None:
        self.on_malformed()


def guarded_protocol(limits: ConnectionLimits, inner: type[asyncio.Protocol] = AutoHTTPProtocol) -> Any:
    """What `uvicorn.Config(http=…)` takes: makes the protocol of each connection of one server."""
    others: dict[GuardedProtocol, None] = {}
    telling = type("TellingProtocol", (_TellsOfMalformed, inner), {})

    def make(**options: Any) -> GuardedProtocol:
        return GuardedProtocol(limits, others, options, telling)

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


def _whole(status: bytes, error: ServiceError) -> bytes:
    """A whole response, which no application sends: there is no request yet to answer."""
    response = error_response(error)
    lines = [b"%b: %b\r\n" % pair for pair in response.raw_headers]
    head = b"HTTP/1.1 %b\r\n%bconnection: close\r\n\r\n" % (status, b"".join(lines))
    return head + bytes(response.body)


def _say_full(limit: int, server_state: Any) -> None:
    """Once in a while: in a flood, a line for each connection would be a flood of its own."""
    now = time.monotonic()
    if now - getattr(server_state, "acemath_said_full", -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS:
        server_state.acemath_said_full = now
        _log.warning("all %d connections are taken; the oldest one that waits for its caller is closed", limit)
