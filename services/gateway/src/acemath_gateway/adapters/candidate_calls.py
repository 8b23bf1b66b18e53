"""Candidates that are made by a call each, as one stream of events; closing a call ends its candidate alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from acemath_gateway.adapters.http import CallFailed
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import CandidateFailed, PolicyEvent, TokensGenerated

_ROOM = 256  # events that wait to be read; a call with more to say waits with one in its hands


class CandidateCalls:
    """`Candidates` of one call each; the calls begin at once.

    A call of which nothing came is a failed candidate once another one has given something, and the failure of all as
    long as none has: what the caller sees is what it would see of one call for all. Another version's work fails all.

    Args:
        one: index → the events of that candidate's call, whose own index is 0; raises `CallFailed` when nothing came.
        n: candidates.
        declared: the failure of all of them, in the words of the port.
    """

    def __init__(
        self,
        one: Callable[[int], AsyncGenerator[PolicyEvent, None]],
        n: int,
        declared: Callable[[CallFailed], Exception],
    ) -> None:
        self._one, self._declared, self._open = one, declared, n
        self._came: deque[PolicyEvent] = deque()
        self._room, self._some = asyncio.Semaphore(_ROOM), asyncio.Event()
        self._lost: dict[int, CallFailed] = {}
        self._stopped: set[int] = set()
        self._bug: BaseException | None = None
        self._tasks = [asyncio.create_task(self._write(index), name=f"candidate {index}") for index in range(n)]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def stop(self, index: int) -> None:
        """See `Candidates`."""
        self._stopped.add(index)
        self._lost.pop(index, None)
        self._tasks[index].cancel()

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        """See `Candidates`."""
        begun = False
        while self._open or self._came or self._lost:
            self._some.clear()
            while self._came:
                begun = True
                event = self._came.popleft()
                self._room.release()
                if event.index not in self._stopped or isinstance(event, TokensGenerated):
                    yield event
            self._raise_failure_of_all(begun)
            while begun and self._lost:
                index, failure = self._lost.popitem()
                yield CandidateFailed(index, failure.result.value)
            if self._open and not self._came:
                await self._some.wait()
        self._raise_failure_of_all(begun)

    async def close(self) -> None:
        """End every call, and return when nothing of them is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _write(self, index: int) -> None:
        try:
            async with aclosing(self._one(index)) as events:
                async for event in events:
                    self._came.append(replace(event, index=index))
                    self._some.set()
                    await self._room.acquire()  # after it, so that no token is lost of a call that is stopped here
        except CallFailed as failure:
            if failure.result is CallResult.MISMATCH:
                raise
            if index not in self._stopped:
                self._lost[index] = failure

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open -= 1
        self._some.set()
        if not task.cancelled():
            self._bug = self._bug or task.exception()

    def _raise_failure_of_all(self, begun: bool) -> None:
        if isinstance(self._bug, CallFailed):
            raise self._declared(self._bug) from self._bug
        if self._bug is not None:
            raise self._bug
        if self._lost and not begun and not self._open and not self._came:
            last = list(self._lost.values())[-1]
            raise self._declared(last) from last
