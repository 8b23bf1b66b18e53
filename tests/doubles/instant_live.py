"""`WS /v1/score/live` of the instant upstream: an opening, pieces, and a score at once for each end.

    ->  {"type": "open", "messages": […], "model": "name@version" | null, "deadline": seconds | null}
    ->  {"type": "piece", "index": 0, "text": "…"}    ->  {"type": "end", "index": 0}
    ->  {"type": "drop", "index": 0}
    ->  a list of these; scores come in lists, too, where the opening said "joined": true
    <-  {"type": "score", "index": 0, "score": …, "tokens": …}
    ->  {"type": "done"}    <-  {"type": "done"}    and another opening may come

As little of RFC 6455 as a client can do with, read by hand: a library takes several times as long for a frame, and
there are three of them for each candidate of each request. What a client need not do (a message in fragments, binary
ones, compression) ends the connection; so does a frame that the service would not take, after the error that says so.
Pieces of ids, deadlines and the idle time are not here. `tests/contract` runs its suites on this, too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, cast

from websockets.frames import apply_mask

from acemath_core.errors import Conflict, ErrorCode, InvalidRequest, ServiceError

PATH = b"/v1/score/live"
MAX_FRAME_BYTES = 2**20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A  # whole messages' first bytes: FIN and the opcode
_POLICY_VIOLATION = (1008).to_bytes(2)
Score = Callable[[str], dict[str, Any] | None]


class BrokenFrame(ValueError):
    """The bytes are no frame that is read here."""


def whole_frames(unread: bytearray) -> list[tuple[int, bytes]]:
    """Take the whole frames from the beginning of what was received: first byte and payload of each.

    Raises:
        BrokenFrame: one is not masked, or longer than `MAX_FRAME_BYTES`.
    """
    found, at, received = [], 0, len(unread)
    while received - at >= 6:
        size, head = unread[at + 1] - 128, 2
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(unread[at + 2 : at + head])
        if not 0 <= size <= MAX_FRAME_BYTES:
            raise BrokenFrame
        start = at + head + 4
        if received < start + size:
            break
        mask = bytes(unread[at + head : start])
        found.append((unread[at], apply_mask(bytes(unread[start : start + size]), mask)))
        at = start + size
    del unread[:at]
    return found


def framed(first: int, payload: bytes) -> bytes:
    """A frame as a server sends it, of less than 64 KiB."""
    size = len(payload)
    head = bytes((first, size)) if size < 126 else bytes((first, 126)) + size.to_bytes(2)
    return head + payload


class LiveConnection(asyncio.Protocol):
    """One websocket, from the answer to its handshake.

    Args:
        version: the one that is served.
        score: the fields of a candidate's score; None when it is too long.
        key: the handshake's `Sec-WebSocket-Key`.
    """

    def __init__(self, version: str, score: Score, key: bytes) -> None:
        self._version, self._score, self._key = version, score, key
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._texts: dict[int, str] = {}
        self._dropped: set[int] = set()
        self._opened = self._joined = self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        self._transport.write(head + b"sec-websocket-accept: %b\r\n\r\n" % accept)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._unread += data
        said = bytearray()
        try:
            for first, payload in whole_frames(self._unread):
                said += self._answer(first, payload)
        except ServiceError as error:
            said += self._said([_error(error, None)]) + framed(_CLOSE, _POLICY_VIOLATION)
            self._over = True
        except (ValueError, TypeError, KeyError):  # no frame, no JSON, or not one of ours
            self._transport.abort()
            return
        self._transport.write(bytes(said))
        if self._over:
            self._transport.close()

    def _answer(self, first: int, payload: bytes) -> bytes:
        if first == _TEXT:
            message = json.loads(payload)
            return self._said([self._heard(frame) for frame in (message if isinstance(message, list) else [message])])
        if first == _PING:
            return framed(_PONG, payload)
        if first == _CLOSE:
            self._over = True
            return framed(_CLOSE, payload)
        if first == _PONG:
            return b""
        raise BrokenFrame

    def _said(self, answers: list[dict[str, Any] | None]) -> bytes:
        frames = [answer for answer in answers if answer is not None]
        if self._joined and len(frames) > 1:
            return framed(_TEXT, json.dumps(frames).encode())
        return b"".join(framed(_TEXT, json.dumps(frame).encode()) for frame in frames)

    def _heard(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        kind = frame.get("type")
        if self._opened and kind == "done":
            self._opened, self._texts, self._dropped = False, {}, set()
            return {"type": "done"}
        if self._opened and frame.get("index") in self._dropped:
            return None
        if self._opened and kind == "drop" and self._texts.pop(frame["index"], None) is not None:
            self._dropped.add(frame["index"])
            return None
        if self._opened and kind == "piece":
            index = frame["index"]
            self._texts[index] = self._texts.get(index, "") + frame["text"]
            return None
        if self._opened and kind == "end" and frame["index"] in self._texts:
            return self._scored(frame["index"])
        if self._opened or kind != "open":
            raise InvalidRequest("not what may come next", param="type")
        if frame["model"] not in (None, self._version):
            raise Conflict("not served here", param="model", code=ErrorCode.MODEL_NOT_SERVED)
        self._opened, self._joined = True, bool(frame.get("joined"))
        return None

    def _scored(self, index: int) -> dict[str, Any]:
        fields = self._score(self._texts.pop(index))
        if fields is None:
            return _error(InvalidRequest("too long", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED), index)
        return {"type": "score", "index": index, **fields}


def _error(error: ServiceError, index: int | None) -> dict[str, Any]:
    said = {"code": error.code.value, "message": error.message, "param": error.param, "retry_after": None}
    return {"type": "error", "index": index, **said}
