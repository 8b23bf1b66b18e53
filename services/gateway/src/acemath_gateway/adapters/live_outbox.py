"""What waits to be sent on a connection, bounded, so that who writes it never waits."""

from __future__ import annotations

import asyncio
from collections import deque

_MESSAGE_CHARS = 64 * 1024


class Outbox:
    """Frames in order.

    Args:
        max_chars: of all waiting frames together.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars, self._chars = max_chars, 0
        self._frames: deque[str] = deque()
        self._some = asyncio.Event()

    def put(self, *frames: str) -> bool:
        """Add frames, all of them or, when there is no room, none; says which."""
        chars = sum(map(len, frames))
        if self._chars + chars > self._max_chars:
            return False
        self._frames.extend(frames)
        self._chars += chars
        self._some.set()
        return True

    def put_first(self, frame: str) -> None:
        """Add one before all others, whether there is room or not."""
        self._frames.appendleft(frame)
        self._chars += len(frame)
        self._some.set()

    def clear(self) -> list[str]:
        """Forget what waits; gives it."""
        forgotten = list(self._frames)
        self._frames.clear()
        self._chars = 0
        return forgotten

    async def filled(self) -> None:
        """Return when there is something to take."""
        while not self._frames:
            self._some.clear()
            await self._some.wait()

    def take(self) -> list[str]:
        """The next frames, none if none wait, and not many more characters than `_MESSAGE_CHARS`."""
        taken, chars = list[str](), 0
        while self._frames and chars < _MESSAGE_CHARS:
            taken.append(self._frames.popleft())
            chars += len(taken[-1])
        self._chars -= chars
        return taken
