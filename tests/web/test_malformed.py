"""What is no HTTP is refused in the shape of every other error, and never in the middle of somebody's answer."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from web.raw_service import ASK, PATIENCE, PROTOCOLS, RawService

POST = b"POST /echo HTTP/1.1\r\nhost: probe\r\n"
NO_HTTP = {
    "words": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "another protocol": b"GET /livez HTTX/1.1\r\nhost: probe\r\n\r\n",
    "no name": b"GET /livez HTTP/1.1\r\nhost: probe\r\n: x\r\n\r\n",
    "no length": POST + b"content-length: many\r\n\r\n",
    "a body cut wrongly": POST + b"transfer-encoding: chunked\r\n\r\nmuch\r\n",
    "a long one": b"x" * 60_000 + b"\r\n" * 1000,
}


@pytest.fixture(params=PROTOCOLS)
def service(request: pytest.FixtureRequest) -> RawService:
    return RawService(PROTOCOLS[request.param])


async def _all(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), PATIENCE)


def _is_our_400(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    error = json.loads(body)["error"]
    assert b"connection: close" in lines and b"content-type: application/json" in lines
    assert b"content-length: %d" % len(body) in lines and "HTTP/1.1" in error["message"]
    return lines[0] == b"http/1.1 400 bad request" and error["code"] == "invalid_request"


@pytest.mark.parametrize("kind", NO_HTTP)
async def test_it_is_answered_as_every_error(service: RawService, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with service.serving() as at:
        assert _is_our_400(await _all(await at.connect(NO_HTTP[kind])))
        assert await at.livez() == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_answer_arrives_while_the_caller_goes_on_sending(service: RawService) -> None:
    async with service.serving() as at:
        reader = await at.connect(b"hello there\r\n\r\n")
        for _ in range(64):
            at.writers[-1].write(b"x" * 65_536)
            await at.writers[-1].drain()
        assert _is_our_400(await _all(reader))


async def test_it_is_refused_behind_an_answer_that_is_complete(service: RawService) -> None:
    async with service.serving() as at:
        reader = await at.connect(ASK % b"/livez")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await asyncio.wait_for(reader.readexactly(int(length.split(b":")[1])), PATIENCE)
        at.writers[-1].write(NO_HTTP["words"])
        assert _is_our_400(await _all(reader))


@pytest.mark.parametrize("path", [b"/held", b"/begun"])
async def test_nothing_is_said_into_an_answer_that_is_owed(path: bytes) -> None:
    async with RawService(HttpToolsProtocol).serving() as at:  # h11 looks at what follows when it has answered
        reader = await at.connect(ASK % path)
        await at.begun.wait()
        at.writers[-1].write(NO_HTTP["words"])
        try:
            answer = await _all(reader)
        except ConnectionError:
            answer = b""
        assert b"error" not in answer
        at.end.set()
        assert await at.livez() == 200
