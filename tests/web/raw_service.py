"""A service under limits on a real socket, and callers that write bytes to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, WebSocket
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from acemath_web.auth import KeySet
from acemath_web.connections import ConnectionLimits, guarded_protocol
from acemath_web.health import Readiness
from acemath_web.service import create_service
from doubles.servers import client_of, served

PATIENCE = 60.0
PROTOCOLS = {"httptools": HttpToolsProtocol, "h11": H11Protocol}
ASK = b"GET %b HTTP/1.1\r\nhost: probe\r\n\r\n"


@contextlib.asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def _routes(begun: asyncio.Event, end: asyncio.Event) -> APIRouter:
    router = APIRouter()

    @router.get("/busy/{seconds}")
    async def work(seconds: float) -> str:
        begun.set()
        await asyncio.sleep(seconds)
        return "done"

    @router.get("/held")
    async def hold() -> str:
        begun.set()
        await end.wait()
        return "done"

    @router.post("/echo")
    async def echo(body: Annotated[bytes, Body()]) -> int:
        return len(body)

    @router.websocket("/socket")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())

    @router.get("/long/{size}")
    async def say(size: int) -> Response:
        return Response(b"x" * size)

    @router.get("/begun")
    async def begin() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            begun.set()
            await end.wait()
            yield b"last"

        return StreamingResponse(pieces())

    return router


class RawService:
    """A service under limits, and raw connections to it."""

    def __init__(self, protocol: type[asyncio.Protocol]) -> None:
        self._protocol = protocol
        self.begun, self.end = asyncio.Event(), asyncio.Event()
        self.url = ""
        self.writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def serving(self, **limits: Any) -> AsyncIterator[RawService]:
        app = create_service(
            name="probe",
            routers=[_routes(self.begun, self.end)],
            readiness=lambda: Readiness(True),
            registry=CollectorRegistry(),
            keys=KeySet([]),
            lifespan=_no_lifespan,
            max_body_bytes=1000,
        )
        async with served(app, http=guarded_protocol(ConnectionLimits(**limits), self._protocol)) as self.url:
            try:
                yield self
            finally:
                for writer in self.writers:
                    writer.transport.abort()
                await asyncio.sleep(0)

    async def connect(self, sent: bytes) -> asyncio.StreamReader:
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.writers.append(writer)
        writer.write(sent)
        await writer.drain()
        return reader

    async def livez(self) -> int:
        async with client_of(self.url) as http:
            return (await http.get("/livez")).status_code
