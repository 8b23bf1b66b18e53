"""A caller that sends its whole body before it reads gets the answer, not a reset; one that never ends is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.types import Message, Receive, Scope, Send

from acemath_core.errors import InvalidRequest
from acemath_web.auth import KeySet
from acemath_web.errors import error_response
from acemath_web.health import Readiness
from acemath_web.linger import LingeringCloseMiddleware
from acemath_web.service import create_service
from doubles.servers import served

KEY = "k" * 32
MAX_BODY = 1000
LONG = 20_000_000
PIECE = b"x" * 65_536
CHUNK = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
PROTOCOLS = ("httptools", "h11")


@contextlib.asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def _routes() -> APIRouter:
    router = APIRouter()

    @router.post("/raw")
    async def raw(body: Annotated[bytes, Body()]) -> int:
        return len(body)

    @router.post("/unread")
    async def unread() -> None:
        raise InvalidRequest("refused by its headers alone")

    return router


@pytest.fixture(params=PROTOCOLS)
async def address(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, int]]:
    """A service as all of ours are, under each of uvicorn's HTTP protocols."""
    app = create_service(
        name="probe",
        routers=[_routes()],
        readiness=lambda: Readiness(True, "", {}),
        registry=CollectorRegistry(),
        keys=KeySet([SecretStr(KEY)]),
        lifespan=_no_lifespan,
        max_body_bytes=MAX_BODY,
    )
    async with served(app, http=request.param) as url:
        yield _address(url)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services of ours wait for 20 MB as long as a busy machine takes for them."""
    for bound in ("pause_seconds", "total_seconds"):
        monkeypatch.setitem(LingeringCloseMiddleware.__init__.__kwdefaults__, bound, 60.0)


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def _head(path: str, *lines: str, method: str = "POST", key: str = KEY) -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "host: probe", f"authorization: Bearer {key}", *lines, "", ""]
    ).encode()


def _announced(size: int = LONG) -> Iterator[bytes]:
    yield b"x" * size


def _chunked(size: int = LONG) -> Iterator[bytes]:
    for _ in range(size // len(PIECE) + 1):
        yield CHUNK
    yield b"0\r\n\r\n"


def _exchange(address: tuple[str, int], head: bytes, body: Iterator[bytes]) -> bytes:
    """Everything the server sends to a client that reads only after its body is sent in full."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head)
        for piece in body:
            connection.sendall(piece)
        return _read_all(connection)


def _read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65_536):
        received += data
    return received


def _is_whole(answer: bytes, status: int) -> bool:
    """One response of that status with all the bytes it announced, and the end of the connection announced too."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d" % status), answer
    assert lines.count(b"connection: close") == 1, answer
    return b"content-length: %d" % len(body) in lines


LENGTHS = {"announced": (f"content-length: {LONG}", _announced), "chunked": ("transfer-encoding: chunked", _chunked)}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("length", LENGTHS)
async def test_a_long_body_sent_in_full_is_answered_in_full(address: tuple[str, int], length: str) -> None:
    line, body = LENGTHS[length]
    answer = await asyncio.to_thread(_exchange, address, _head("/raw", line), body())
    assert _is_whole(answer, 413)


REFUSALS = [
    ("/raw", "POST", "wrong", 401),
    ("/nothing", "POST", KEY, 404),
    ("/raw", "PUT", KEY, 405),
    ("/unread", "POST", KEY, 400),
    ("/livez", "GET", KEY, 200),
]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("closing", [[], ["connection: close"]], ids=["kept open", "to be closed"])
async def test_whatever_is_answered_before_the_body_is_read_arrives(
    address: tuple[str, int], closing: list[str]
) -> None:
    for path, method, key, status in REFUSALS:
        for line, body in LENGTHS.values():
            early = 413 if body is _announced and status != 401 else status  # the length is looked at before the route
            head = _head(path, line, *closing, method=method, key=key)
            assert _is_whole(await asyncio.to_thread(_exchange, address, head, body()), early)


async def test_a_body_that_never_ends_is_cut_off(address: tuple[str, int]) -> None:
    assert await asyncio.to_thread(_seconds_until_cut, address, CHUNK, 0.0) < 50


def _seconds_until_cut(address: tuple[str, int], piece: bytes, pause: float) -> float:
    """How long a client may go on sending chunks, one every `pause` seconds, before the connection is closed."""
    started = time.monotonic()
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(_head("/raw", "transfer-encoding: chunked") + CHUNK)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 60:
                connection.sendall(piece)
                time.sleep(pause)
        return time.monotonic() - started


class _Refusing:
    """Answers 400 to everything without reading it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(InvalidRequest("no"))(scope, receive, send)


@contextlib.asynccontextmanager
async def _lingering(protocol: str, **bounds: Any) -> AsyncIterator[tuple[str, int]]:
    """A service whose bounds are out of reach, but for those given."""
    bounded = {"pause_seconds": 30.0, "total_seconds": 30.0, "max_bytes": 10**12} | bounds
    async with served(LingeringCloseMiddleware(_Refusing(), **bounded), http=protocol) as url:
        yield _address(url)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("bounds", "pause"),
    [
        ({"total_seconds": 1.0}, 0.0),
        ({"total_seconds": 1.0}, 0.1),
        ({"max_bytes": 10 * len(PIECE)}, 0.01),
    ],
    ids=["time, flooded", "time, a piece now and then", "bytes"],
)
async def test_each_bound_holds_by_itself(protocol: str, bounds: dict[str, float], pause: float) -> None:
    async with _lingering(protocol, **bounds) as address:
        assert await asyncio.to_thread(_seconds_until_cut, address, CHUNK, pause) < 25  # the other bounds are thirty


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_client_that_falls_silent_is_cut_off_after_the_pause(protocol: str) -> None:
    async with _lingering(protocol, pause_seconds=0.5) as address:
        head = _head("/raw", "transfer-encoding: chunked")
        started = time.monotonic()
        assert _is_whole(await asyncio.to_thread(_exchange, address, head, iter([CHUNK])), 400)
    assert 0.5 <= time.monotonic() - started < 25


async def test_the_answer_is_there_before_a_client_has_sent_its_second_piece(address: tuple[str, int]) -> None:
    answer = await asyncio.to_thread(_trickle, address)
    assert b" 413 " in answer.partition(b"\r\n")[0] and b"request_too_large" in answer


def _trickle(address: tuple[str, int]) -> bytes:
    """The answer to a client that reads between its pieces and leaves; who stays is cut off, as said above."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(_head("/raw", f"content-length: {LONG}") + b"x")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65_536)
        for _ in range(2):
            connection.sendall(b"x" * 1000)
        return answer


async def test_what_lingers_is_received_one_piece_at_a_time_before_the_end_is_sent() -> None:
    left, sent = 100, []

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": PIECE, "more_body": left > 0}

    async def send(message: Message) -> None:
        sent.append((message["type"], message.get("more_body"), left))

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    await LingeringCloseMiddleware(_Refusing())(scope, receive, send)
    kind = "http.response."
    assert sent == [(f"{kind}start", None, 100), (f"{kind}body", True, 100), (f"{kind}body", False, 0)]


async def test_a_connection_stays_open_when_the_body_was_read(address: tuple[str, int]) -> None:
    requests = [
        _head("/raw", "content-type: application/octet-stream", "content-length: 3") + b"abc",
        _head("/livez", method="GET"),
        _head("/raw", "content-type: application/octet-stream", "transfer-encoding: chunked") + b"1\r\na\r\n0\r\n\r\n",
    ]
    reader, writer = await asyncio.open_connection(*address)
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200") and b"connection:" not in head
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()
