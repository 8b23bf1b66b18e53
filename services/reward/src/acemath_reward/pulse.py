"""Whether the engine's thread goes on and its engine computes: that they exist does not say so.

A device that hangs keeps the thread for ever; after some errors of a device (CUDA's are often of this kind) every
further call of the process fails. Neither can be mended from inside: such a replica takes no new calls, and in the end
its process ends, so that whoever runs it starts it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from acemath_core.errors import ServiceError
from acemath_reward.batcher import Batcher
from acemath_reward.ports import PromptGroup, RewardModel

_ENDED = "the engine's thread has ended"


@dataclass(frozen=True, slots=True)
class PulseLimits:
    """How long is too long.

    Attributes:
        stuck_seconds: a batch, or a check of a new version, that takes longer is taken for one that never ends.
        lost_seconds: after so long in trouble nobody waits for its end any more; 0: that is never given up.
    """

    stuck_seconds: float
    lost_seconds: float


class EnginePulse:
    """Asks the engine's thread for nothing at all, between two batches, and measures how long it takes.

    After a batch that failed it asks for the score of one token: a call may be at fault, or the engine is.

    Args:
        batcher: whose thread is asked.
        limits: see there.
        serving: gives the model that scores now, None while there is none, or one that has a process of its own.
    """

    def __init__(self, batcher: Batcher, limits: PulseLimits, serving: Callable[[], RewardModel | None]) -> None:
        self._batcher, self._limits, self._serving = batcher, limits, serving
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._broken: str | None = None
        self._broken_at = 0.0

    def beat(self) -> None:
        """Ask, unless an earlier question is still open; from time to time, on the event loop."""
        if self._asking is None or self._asking.done():
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask())

    def problem(self) -> str | None:
        """Why nothing is being scored, None while the engine computes."""
        if not self._batcher.alive:
            return _ENDED
        if self._broken is not None:
            return f"the engine has computed nothing for {time.monotonic() - self._broken_at:.0f} s: {self._broken}"
        open_for = self._open_for()
        stuck = open_for > self._limits.stuck_seconds
        return f"the engine has been at one batch for {open_for:.0f} s" if stuck else None

    def lost(self) -> str | None:
        """Why only a new process helps, None while the engine computes, or may yet."""
        limit = self._limits.lost_seconds
        if not limit or (problem := self.problem()) is None:
            return None
        broken_for = time.monotonic() - self._broken_at if self._broken is not None else 0.0
        return problem if problem == _ENDED or max(broken_for, self._open_for()) > limit else None

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _open_for(self) -> float:
        return 0.0 if self._asking is None or self._asking.done() else time.monotonic() - self._asked_at

    async def _ask(self) -> None:
        model = self._serving() if self._batcher.failing else None
        try:
            await self._batcher.call(_nothing if model is None else lambda: _score_a_token(model))
        except ServiceError:
            return  # it is stopping, which is no reason for an alarm
        except Exception as error:
            self._note_broken(type(error).__name__)
        else:
            self._broken = None
            if model is not None:
                self._batcher.forgive()

    def _note_broken(self, how: str) -> None:
        self._broken_at = self._broken_at if self._broken is not None else time.monotonic()
        self._broken = f"a batch of one token fails, too ({how})"


def _nothing() -> None:
    """What the thread is asked to do while batches succeed."""


def _score_a_token(model: RewardModel) -> None:
    model.score([PromptGroup((), ((0,),))])
