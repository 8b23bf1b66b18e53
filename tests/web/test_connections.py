"""Callers that dawdle, however many, cost places that others get when they come with a whole request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from web.raw_service import ASK, PATIENCE, PROTOCOLS, RawService

from acemath_web.connections import within_file_limit

HALF_HEAD = b"GET /livez HTTP/1.1\r\nhost: probe\r\nx-slow: "
HALF_BODY = b"POST /echo HTTP/1.1\r\nhost: probe\r\ncontent-length: 10\r\n\r\nab"


@pytest.fixture(params=PROTOCOLS)
def service(request: pytest.FixtureRequest) -> RawService:
    return RawService(PROTOCOLS[request.param])


async def _is_closed(reader: asyncio.StreamReader, seconds: float = 30.0) -> bool:
    """Whether the connection ends within the time, without an answer before."""
    try:
        return await asyncio.wait_for(reader.read(1), seconds) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("begin", [b"", HALF_HEAD, HALF_BODY], ids=["silent", "half a head", "half a body"])
async def test_a_probe_is_answered_while_many_dawdle(service: RawService, begin: bytes) -> None:
    async with service.serving(connections=8) as at:
        slow = [await at.connect(begin) for _ in range(40)]
        for _ in range(3):
            assert await at.livez() == 200
        ended = [await _is_closed(reader) for reader in slow[:32]]
        assert all(ended), "no more than eight places were held"
        assert not await _is_closed(slow[-1], 0.1), "the youngest keep theirs"


async def test_what_is_being_worked_on_keeps_its_place(service: RawService) -> None:
    async with service.serving(connections=4) as at:
        working = await at.connect(ASK % b"/held")
        await at.begun.wait()
        for _ in range(12):
            await at.connect(HALF_HEAD)
        assert await at.livez() == 200
        at.end.set()
        assert (await asyncio.wait_for(working.readuntil(b"done"), PATIENCE)).startswith(b"HTTP/1.1 200")


async def test_when_every_place_is_at_work_the_new_one_is_closed(service: RawService) -> None:
    async with service.serving(connections=2) as at:
        working = []
        for _ in range(2):
            at.begun.clear()
            working.append(await at.connect(ASK % b"/held"))
            await at.begun.wait()
        assert await _is_closed(await at.connect(b""))
        at.end.set()
        for reader in working:
            await asyncio.wait_for(reader.readuntil(b"done"), PATIENCE)
        assert await at.livez() == 200


@pytest.mark.parametrize("begin", [b"", HALF_HEAD, HALF_BODY], ids=["silent", "half a head", "half a body"])
async def test_a_request_that_does_not_come_in_time_is_cut_off(service: RawService, begin: bytes) -> None:
    async with service.serving(receive_seconds=0.3) as at:
        assert await _is_closed(await at.connect(begin))


async def test_a_byte_now_and_then_does_not_buy_time(service: RawService) -> None:
    async with service.serving(receive_seconds=0.5) as at:
        reader = await at.connect(HALF_HEAD)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                at.writers[-1].write(b"x")
                await at.writers[-1].drain()
                if await _is_closed(reader, 0.1):
                    return
        pytest.fail("it bought ten seconds")


async def test_the_time_is_the_callers_neither_the_work_nor_the_pause_after_it(service: RawService) -> None:
    async with service.serving(receive_seconds=0.3) as at:
        reader = await at.connect(ASK % b"/busy/0.4")
        for _ in range(2):
            await asyncio.wait_for(reader.readuntil(b"done"), PATIENCE)
            await reader.read(1)  # the closing quotation mark
            await asyncio.sleep(0.4)
            at.writers[-1].write(ASK % b"/busy/0")
        await asyncio.wait_for(reader.readuntil(b"done"), PATIENCE)


async def test_a_head_without_end_is_cut_off(service: RawService) -> None:
    async with service.serving(head_bytes=10_000) as at:
        reader = await at.connect(b"GET /livez HTTP/1.1\r\nhost: probe\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2000):
                at.writers[-1].write(b"x-%d: y\r\n" % number)
                await at.writers[-1].drain()
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["ended", "not ended"])
@pytest.mark.parametrize("size", [70_000, 200_000, 2_000_000])
async def test_a_head_over_the_limit_is_answered(size: int, end: bytes) -> None:
    async with RawService(HttpToolsProtocol).serving() as at:
        reader = await at.connect(b"GET /livez HTTP/1.1\r\nhost: probe\r\nx-a: " + b"b" * size + end)
        head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ") and b"connection: close" in head
        assert json.loads(body)["error"]["code"] == "headers_too_large"
        assert await at.livez() == 200


async def test_a_refused_head_does_not_hold_its_place_for_ever(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acemath_web.connections.TOTAL_SECONDS", 0.3)
    async with service.serving(head_bytes=10_000) as at:
        reader = await at.connect(HALF_HEAD + b"x" * 20_000)
        assert b" 431 " in await asyncio.wait_for(reader.read(), PATIENCE)
        with pytest.raises(ConnectionError):
            for _ in range(100):
                at.writers[-1].write(b"x")
                await at.writers[-1].drain()
                await asyncio.sleep(0.05)


async def test_the_limit_is_of_the_head_not_of_what_comes_with_it(service: RawService) -> None:
    async with service.serving(head_bytes=10_000) as at:
        fits = b"POST /echo HTTP/1.1\r\nhost: probe\r\nx-a: " + b"b" * 9_000
        reader = await at.connect(fits + b"\r\ncontent-length: 900\r\n\r\n" + b"x" * 900)
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)


def test_connections_leave_files_for_the_service_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits, wanted, allowed in (
        ((1024, 4096), 1024, 1024),
        ((100_000, 100_000), 1024, 1024),
        ((512, 512), 1024, 256),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, now=limits: now)
        assert within_file_limit(wanted) == allowed
    assert asked == [(1280, 4096), (512, 512)]


UPGRADE = (
    b"GET /socket HTTP/1.1\r\nhost: probe\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_websocket_is_neither_cut_off_nor_closed_for_others(service: RawService) -> None:
    async with service.serving(connections=4, receive_seconds=0.3) as at:
        reader = await at.connect(UPGRADE)
        socket = at.writers[-1]
        assert b" 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        for _ in range(12):
            await at.connect(HALF_HEAD)
        await asyncio.sleep(0.5)
        assert await at.livez() == 200
        socket.write(b"\x81\x82\0\0\0\0hi")  # a text frame of the client's, masked with zeros (RFC 6455, section 5.2)
        assert await asyncio.wait_for(reader.readexactly(4), PATIENCE) == b"\x81\x02hi"
