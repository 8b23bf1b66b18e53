"""A server that gives long-lived connections time when it is told to stop.

Uvicorn closes every websocket the moment it gets the signal. Here the application's own `drain` runs before that: no
new connections are accepted, requests in flight go on, and what is open is brought to its end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn

_log = logging.getLogger(__name__)

Drain = Callable[[float], Coroutine[Any, Any, None]]
"""Brings an application's long-lived connections to their end within so many seconds."""


async def nothing_to_drain(_: float) -> None:
    """For an application whose connections are requests only, which uvicorn waits for itself."""


class DrainingServer(uvicorn.Server):
    """`uvicorn.Server` that drains first.

    Args:
        config: uvicorn's; its `timeout_graceful_shutdown` is what draining and the requests in flight have together.
        drain: the application's.
        keeps: everything that start makes lives as long as the process; not where models come and go.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, *, keeps: bool = False) -> None:
        super().__init__(config)
        self._drain, self._keeps = drain, keeps
        self._draining: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn: the second SIGINT waits for nothing, draining included."""
        super().handle_exit(sig, frame)
        if self.force_exit and self._draining is not None:
            self._draining.get_loop().call_soon_threadsafe(self._draining.cancel)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn; what is to be kept is out of the garbage collector's sight then.

        Looking through modules, schemas and tokenizers at each full collection holds every request up for some 50 ms.
        """
        await super().startup(sockets)
        if self._keeps:
            gc.collect()
            gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, drain, and go on as uvicorn does, with the time that is left."""
        seconds, begun = self.config.timeout_graceful_shutdown or 0, time.monotonic()
        for server in self.servers:
            server.close()
        self._draining = asyncio.ensure_future(self._drain(seconds))
        await asyncio.wait({self._draining})
        if not self._draining.cancelled() and (error := self._draining.exception()):
            _log.error("draining failed; connections are closed as they are", exc_info=error)
        left = seconds - int(time.monotonic() - begun)
        self.config.timeout_graceful_shutdown = max(1, left)
        await super().shutdown(sockets)
