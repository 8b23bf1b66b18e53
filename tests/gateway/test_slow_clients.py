"""A client that sends slowly or reads nothing is let go: it holds no task and no place for long."""

import asyncio
import json

import pytest

from acemath_gateway.routes import body, streams
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, served
from doubles.ports import ScriptedPolicy

HEAD = b"POST /v1/solve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
LONG = "x" * 8_000_000 + "\\boxed{24}"  # more than the buffers of two sockets hold


async def connected(url: str, request: bytes, announced: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(HEAD % announced + request)
    return reader, writer


async def test_a_body_that_does_not_come_is_refused(monkeypatch):
    monkeypatch.setattr(body, "_BODY_SECONDS", 0.5)
    async with served(GatewayOnDoubles().app()) as url:
        reader, writer = await connected(url, b'{"problem": "', 1000)
        answer = await asyncio.wait_for(reader.read(4000), 20)
        writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 400") and b"not here after 0.5 seconds" in answer


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch, stream):
    monkeypatch.setattr(streams, "SEND_SECONDS", 0.5)
    gateway = GatewayOnDoubles(policy=ScriptedPolicy([LONG]))
    app = gateway.app()
    async with served(app) as url:
        request = json.dumps({"problem": PROBLEM, "n": 1, "stream": stream, "candidates": "full"}).encode()
        _, writer = await connected(url, request, len(request))
        parts = lambda: app.state.parts.metrics  # noqa: E731
        if stream:
            await eventually(lambda: parts().disconnects._value.get() == 1, 30)
        else:
            await eventually(lambda: parts().requests.labels("ok", "best_of_n")._value.get() == 1, 30)
        await eventually(lambda: gateway.release.held == gateway.limit.held == 0)
        writer.transport.abort()
