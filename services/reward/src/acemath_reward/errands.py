"""What the engine's thread does between two passes for somebody on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Errand(Generic[_T]):
    """A function that another thread runs; made on the event loop.

    Args:
        function: what is run.

    Attributes:
        result: on the loop, what it gave or raised.
    """

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function, self._loop = function, asyncio.get_running_loop()
        self.result: asyncio.Future[_T] = self._loop.create_future()

    def run(self) -> None:
        """Do it."""
        try:
            found = self._function()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, error)
        else:
            self._loop.call_soon_threadsafe(self._finish, found)

    def _finish(self, found: _T) -> None:
        if not self.result.done():
            self.result.set_result(found)

    def _fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
