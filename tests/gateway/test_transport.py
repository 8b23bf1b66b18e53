"""The transport of calls between services: connections are used again; whatever is not HTTP is a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from acemath_gateway.adapters.transport import Answer, Redirected, Transport
from acemath_gateway.compose import _upstreams
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.settings import GatewaySettings
from doubles.servers import RawServer, chunked, settled, until, unused_url

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    content: bytes
    header: Callable[[str], str | None]


@dataclass
class Client:
    """Calls of one origin."""

    transport: Transport
    url: str = ""

    async def get(self, url: str = "/", headers: dict[str, str] | None = None) -> Reply:
        return await self._whole("GET", url, b"", headers or {})

    async def post(self, url: str, content: bytes) -> Reply:
        return await self._whole("POST", url, content, {})

    @asynccontextmanager
    async def stream(self, url: str = "/") -> AsyncIterator[Answer]:
        answer = await self.transport.send("GET", self.url + url, {})
        try:
            yield answer
        finally:
            answer.close()

    async def _whole(self, method: str, url: str, content: bytes, headers: dict[str, str]) -> Reply:
        answer = await self.transport.send(method, self.url + url, headers, content)
        try:
            return Reply(answer.status, b"".join([piece async for piece in answer.pieces()]), answer.header)
        finally:
            answer.close()


@asynccontextmanager
async def calling(transport: Transport | None = None, url: str = "") -> AsyncIterator[Client]:
    client = Client(transport or a_transport(), url)
    try:
        yield client
    finally:
        await client.transport.close()


@dataclass
class Answers:
    """A server that answers each request of a connection with the next of its answers, and closes after the last."""

    answers: list[bytes]
    connections: int = 0
    open: int = 0
    closes: bool = True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            for answer in self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                writer.write(answer)
                await writer.drain()
            if not self.closes:
                await reader.read()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client left
        finally:
            self.open -= 1
            writer.close()

    @asynccontextmanager
    async def serving(self, transport: Transport | None = None) -> AsyncIterator[Client]:
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, calling(transport, url) as client:
            yield client


def a_transport(**options: Any) -> Transport:
    return Transport(**({"max_connections": 8, "idle_seconds": 3.0} | options))


async def test_a_connection_is_used_again_and_closed_with_the_client() -> None:
    server = Answers([OK] * 5, closes=False)
    async with server.serving() as client:
        for _ in range(5):
            reply = await client.post("/x", b"{}")
            assert (reply.status, reply.content) == (200, b"ok")
        assert (server.connections, server.open) == (1, 1)
    await until(lambda: server.open == 0)


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_a_body_of_any_size_arrives_whole(size: int) -> None:
    came = bytearray()

    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.lower().count(b"content-length:") == 1 and b"chunked" not in head.lower()
        came.extend(await reader.readexactly(size))
        writer.write(OK)
        writer.close()

    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    server = await asyncio.start_server(reads, "127.0.0.1", 0)
    async with server, calling() as client:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await client.post(url, content)).content == b"ok"
    assert bytes(came) == content


async def test_one_that_was_idle_for_too_long_is_not() -> None:
    server = Answers([OK] * 2)
    async with server.serving(a_transport(idle_seconds=0.0)) as client:
        for _ in range(2):
            await client.get("/")
            await asyncio.sleep(0.01)
    assert server.connections == 2


async def test_one_that_the_server_closed_meanwhile_is_not() -> None:
    server = Answers([OK])
    async with server.serving() as client:
        for _ in range(3):
            assert (await client.get("/")).content == b"ok"
            await until(lambda: server.open == 0)
            await asyncio.sleep(0.01)
            await settled()  # and the client has heard of it
    assert server.connections == 3


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (CHUNKED + chunked(b"a" * 70_000) + chunked(b"b") + b"0\r\n\r\n", b"a" * 70_000 + b"b"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nx: y\r\n\r\n" + OK, b"ok"),
    ],
)
async def test_every_form_of_a_body(answer: bytes, body: bytes) -> None:
    async with Answers([answer]).serving() as client:
        reply = await client.get("/")
    assert reply.content == body and reply.header("x") is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        CHUNKED + b"zz\r\n",
        CHUNKED + chunked(b"a"),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_whatever_is_not_a_whole_answer_is_an_error_of_the_network(answer: bytes) -> None:
    server = Answers([answer])
    async with server.serving() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get("/")
        await until(lambda: server.open == 0)


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    other = OK.replace(b"ok", b"NO")
    server = Answers([OK + other], closes=False)
    async with server.serving() as client:
        for _ in range(2):  # the second answer may not become that of the next request
            assert (await client.get("/")).content == b"ok"
    assert server.connections == 2


async def test_an_answer_that_is_left_closes_its_connection() -> None:
    server = Answers([CHUNKED + chunked(b"a")], closes=False)
    async with server.serving() as client:
        async with client.stream() as reply:
            async for piece in reply.pieces():
                assert piece == b"a"
                break
        await until(lambda: server.open == 0)


@pytest.mark.parametrize("when", ["connecting", "head", "body"])
async def test_a_cancelled_call_leaves_no_connection_and_no_place(when: str) -> None:
    server = Answers([b"" if when == "head" else CHUNKED], closes=False)
    transport = a_transport(max_connections=1)
    async with server.serving(transport) as client:
        for _ in range(3):
            call = asyncio.create_task(client.get("/"))
            await (asyncio.sleep(0) if when == "connecting" else until(lambda: server.open == 1))
            await settled()
            call.cancel()
            await asyncio.wait({call})
            await until(lambda: server.open == 0)


async def test_who_finds_all_connections_taken_waits_for_one() -> None:
    server = Answers([CHUNKED + chunked(b"a")], closes=False)
    async with server.serving(a_transport(max_connections=1)) as client:
        async with client.stream():
            server.answers = [OK]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.get("/")
            waiting = asyncio.create_task(client.get("/"))
            await settled()
        assert (await waiting).content == b"ok"
    assert server.connections == 2  # what was left unread closed its own


async def test_who_does_not_wait_any_longer_leaves_no_connection() -> None:
    server = Answers([b""], closes=False)
    async with server.serving() as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("/")
        await until(lambda: server.open == 0)


async def test_nobody_there_is_a_failure_to_connect() -> None:
    async with calling() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(unused_url())
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("http://no-such-host.invalid/")


async def test_tls_is_not_spoken_with_who_does_not() -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(no_tls, "127.0.0.1", 0)
    async with server, calling() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\0b"])
async def test_no_header_can_become_two(value: str) -> None:
    server = Answers([OK])
    async with server.serving() as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.get("/", headers={"x-request-id": value})
    assert server.connections == 0


async def test_a_reader_that_is_slow_slows_the_server_down() -> None:
    piece = chunked(b"a" * 65_536)
    sent = 0

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            sent += 1

    async with (
        RawServer(pours).serving() as url,
        calling() as client,
        client.stream(url) as reply,
    ):
        await asyncio.sleep(0.3)
        assert sent < 500
        pieces = reply.pieces()
        first = sent
        while sent < first + 50:
            await anext(pieces)


@pytest.mark.parametrize(("shared", "local", "connections"), [(64, 64, 512), (512, 64, 576), (64, 2000, 2064)])
async def test_every_candidate_may_have_a_connection_and_services_are_still_polled(
    shared: int, local: int, connections: int
) -> None:
    limits = {"max_sequences_in_flight": shared, "local_max_sequences": local}
    settings = GatewaySettings(registry_root=Path("/nonexistent"), instance="test", **limits)
    policy, _ = _upstreams(settings, GatewayMetrics.on(CollectorRegistry()))
    assert policy.transport.max_connections == connections


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"302 Found\r\nlocation: /elsewhere"])
async def test_the_connection_of_a_refused_websocket_is_not_used_for_the_next_one(status: bytes) -> None:
    refusal = b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nno"
    server = Answers([refusal, refusal], closes=False)
    async with server.serving() as client:
        for _ in range(2):
            with pytest.raises((aiohttp.WSServerHandshakeError, Redirected)) as refused:
                await client.transport.websocket(client.url, {}, max_message_bytes=1024)
            assert refused.value.status == int(status[:3])
        assert server.connections == 2
        await until(lambda: server.open == 0)
