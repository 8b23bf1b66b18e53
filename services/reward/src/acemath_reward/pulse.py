"""Whether the engine's thread goes on: that it exists does not say so, a device that hangs keeps it for ever."""

from __future__ import annotations

import asyncio
import time

from acemath_core.errors import ServiceError
from acemath_reward.batcher import Batcher


class EnginePulse:
    """Asks the engine's thread for nothing at all and measures how long it takes; it comes to it between two batches.

    Args:
        batcher: whose thread is asked.
        limit_seconds: a batch, or a check of a new version, that takes longer is taken for one that never ends.
    """

    def __init__(self, batcher: Batcher, limit_seconds: float) -> None:
        self._batcher, self._limit = batcher, limit_seconds
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    def beat(self) -> None:
        """Ask, unless an earlier question is still open; from time to time, on the event loop."""
        if self._asking is None or self._asking.done():
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask())

    def problem(self) -> str | None:
        """Why nothing is being scored, None while the thread goes on."""
        if not self._batcher.alive:
            return "the engine's thread has ended; restart this replica"
        open_for = 0.0 if self._asking is None or self._asking.done() else time.monotonic() - self._asked_at
        return f"the engine has been at one batch for {open_for:.0f} s" if open_for > self._limit else None

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            await self._batcher.call(_nothing)
        except ServiceError:
            return  # it is stopping, which is no reason for an alarm


def _nothing() -> None:
    """What the thread is asked to do."""
