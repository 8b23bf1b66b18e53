"""Callers that do not read what was written for them.

uvicorn waits for them for ever. A whole answer, of megabytes too, is handed to the transport at once and kept there as
long as the connection lives, also once that is closed: what was written before is sent first. And where more is to be
sent, to the same request or to the next of the connection, a task waits beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEAST_BYTES = 16 * 1024
"""What a caller takes between two looks, unless less than that waits: with a minute between them 270 bytes a second."""


class UnreadWatch:
    """Looks now and then at what waits to be sent on one connection.

    It is judged only while nothing is added to it: the transport is full, so that the server waits, or it is closed
    behind its last byte. Between two such looks it has to become shorter by `LEAST_BYTES`, or be gone.

    Args:
        transport: the connection's.
        seconds: between two looks; a caller who takes nothing is let go after one to two times as long.
        give_up: ends the connection; called at most once.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float, give_up: Callable[[], None]) -> None:
        self._transport, self._seconds, self._give_up = transport, seconds, give_up
        self._full = False
        self._before = 0
        self._timer = asyncio.get_running_loop().call_later(seconds, self.look)

    def full(self) -> None:
        """The transport takes no more for now."""
        self._full = True

    def drained(self) -> None:
        """It does again, for most of what waited was sent."""
        self._full, self._before = False, 0

    def look(self) -> None:
        """Give the connection up, or look again later."""
        judged = self._full or self._transport.is_closing()
        waiting = self._transport.get_write_buffer_size() if judged else 0
        before, self._before = self._before, waiting
        if 0 < before < waiting + LEAST_BYTES and waiting > 0:
            self._give_up()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
