"""Threads that share the pieces of one step of a pass, each piece computed by one thread.

A library that divides one product among threads chooses another kernel for it, and the bits change with the number of
threads; its team also waits at the end of every operator. Here a product is always one thread's, so a score has the
same bits from any number of threads, and threads meet twice a layer. Who is late takes fewer pieces: a core that
something else keeps busy costs one piece's time, not the pass's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")
_Work = Callable[[], None]


class Crew:
    """The calling thread and its helpers; may be used by several threads at once.

    Args:
        threads: of one step, the caller among them.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._orders: SimpleQueue[_Work] = SimpleQueue()
        for number in range(1, threads):
            threading.Thread(target=self._help, name=f"reward-crew-{number}", daemon=True).start()

    def each(self, work: Callable[[_T], None], pieces: Sequence[_T]) -> None:
        """Call `work` on every piece, in any order; all are done when it returns.

        Raises:
            BaseException: what a piece raised first; nobody is at work any more then.
        """
        if self.threads == 1 or len(pieces) < 2:
            for piece in pieces:
                work(piece)
            return
        share = _Share(work, pieces)
        for _ in range(min(self.threads, len(pieces)) - 1):
            self._orders.put(share.take_part)
        share.take_part()
        share.wait()

    def _help(self) -> None:
        torch.set_num_threads(1)  # a thread's own setting in OpenMP, which its first operator would take from the cores
        with torch.inference_mode():
            while True:
                self._orders.get()()


class _Share(Generic[_T]):
    """One step: its pieces go to whoever comes for them, so a helper that wakes up late finds nothing left to do."""

    def __init__(self, work: Callable[[_T], None], pieces: Sequence[_T]) -> None:
        self._work, self._left, self._open = work, iter(pieces), len(pieces)
        self._counting, self._done = threading.Lock(), threading.Event()
        self._error: BaseException | None = None

    def take_part(self) -> None:
        """Compute pieces until none is left; the iterator gives each to one thread only."""
        for piece in self._left:
            try:
                self._work(piece)
            except BaseException as error:  # the caller's to see, whoever met it
                self._error = self._error or error
            with self._counting:
                self._open -= 1
                if self._open == 0:
                    self._done.set()

    def wait(self) -> None:
        """Until all are computed."""
        self._done.wait()
        if self._error is not None:
            raise self._error


@cache
def crew_of(threads: int) -> Crew:
    """The process's crew of so many threads: they outlive the engines that use them."""
    return Crew(threads)
