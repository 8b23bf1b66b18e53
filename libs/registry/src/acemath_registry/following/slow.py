"""A registry that does not answer: who follows it waits for a moment, then goes on without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from acemath_core.errors import ErrorCode, Unavailable

ANSWER_SECONDS: Final = 2.0
T = TypeVar("T")


class SlowCalls:
    """Calls that block on the registry: in a thread, one at a time, with a deadline.

    One that hangs (a mount, or a store that accepts and is silent) holds one thread, not one a round: it is left to go
    on, and the next call begins when it has ended.
    """

    def __init__(self) -> None:
        self._running: asyncio.Task[Any] | None = None

    async def result(self, call: Callable[[], T]) -> T:
        """What `call` returns; what it raises is raised.

        Raises:
            Unavailable: (`not_ready`) it, or the one before it, took more than two seconds.
        """
        until = time.monotonic() + ANSWER_SECONDS
        await self._ended(until)
        running = asyncio.create_task(asyncio.to_thread(call), name="ask the registry")
        running.add_done_callback(_hear)
        self._running = running
        await self._ended(until)
        return running.result()

    async def _ended(self, until: float) -> None:
        if self._running is None:
            return
        done, _ = await asyncio.wait({self._running}, timeout=max(0.0, until - time.monotonic()))
        if not done:
            raise Unavailable(
                "the registry does not answer; check its mount, or the object store",
                code=ErrorCode.NOT_READY,
                retry_after=5.0,
            )
        self._running = None


def _hear(ended: asyncio.Task[Any]) -> None:
    """Nobody may ask any more what became of one that was given up."""
    if not ended.cancelled():
        ended.exception()
