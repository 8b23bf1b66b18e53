"""Real sockets for tests on the test's own event loop: an ASGI application, or bytes as scripted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import httpx
import uvicorn
from loopback_ports import free_run


class _Server(uvicorn.Server):
    """Stops as soon as it is told, where uvicorn looks ten times a second and then waits for another tenth."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await settled()
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        await self.lifespan.shutdown()


@contextlib.asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port for the length of the block; yields its base URL.

    Args:
        app: the application.
        options: uvicorn's, such as `http="h11"`.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    defaults = {"log_config": None, "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 1}
    server = _Server(uvicorn.Config(app, **(defaults | options)))
    with contextlib.closing(listening):
        task = asyncio.create_task(server._serve([listening]))  # `serve` would also take the process's signals
        try:
            await until(lambda: server.started or task.done())
            assert server.started, "the application did not start"
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.told.set()
            await task


def client_of(url: str, **more: Any) -> httpx.AsyncClient:
    """A client of a server of ours: as patient as a busy machine needs, without a TLS context, which costs 40 ms."""
    return httpx.AsyncClient(base_url=url, **({"trust_env": False, "timeout": 60, "verify": False} | more))


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A server that answers each connection with a script of bytes; knows how many are open."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.open = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port for the length of the block; yields the base URL."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length:
                await reader.readexactly(int(length[0].split(b":")[1]))
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side left, or the test is over
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Wait until the other side closes the connection."""
    while await reader.read(4096):
        pass


def unused_url() -> str:
    """A base URL where nobody listens, nor will: no server takes such a port by itself."""
    return f"http://127.0.0.1:{free_run()}"


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until the condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition belongs to somebody who sets no event
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def nothing_left(close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """At the end of the block `close` is called, and then no task may be left but the test's own."""
    yield
    await close()
    await no_task_left()


async def no_task_left(before: Collection[asyncio.Task[Any]] = ()) -> None:
    """No task may be left but the test's own and those of `before`; what is about to end may take a moment."""

    def left() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - set(before) - {asyncio.current_task()}  # type: ignore[arg-type]

    with contextlib.suppress(TimeoutError):
        await until(lambda: not left(), seconds=5.0)
    assert not left(), left()


async def settled() -> None:
    """Let the loop finish what it has already been told to do."""
    for _ in range(10):
        await asyncio.sleep(0)
