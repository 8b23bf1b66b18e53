"""What a caller holds while its candidates wait and are scored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ServiceError
from acemath_reward.batching import Encoded, Prompt
from acemath_reward.ports import RewardModel


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model as the batcher sees it.

    Attributes:
        version: name@version; batches never mix two.
        model: does the arithmetic, on the batcher's thread only.
        batch_tokens: budget of one batch; 1 gives every candidate a batch of its own.
    """

    version: str
    model: RewardModel
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """Scores that came out of one batch: (position in the call's sequences, float32 score)."""

    scores: tuple[tuple[int, float], ...]


class Ticket:
    """One call's candidates; made by `Batcher.submit` on the event loop, which is where its scores arrive.

    Args:
        engine: the model that scores them.
        sequences: what to score.
        prompts: of each of them.
        deadline: what has not begun by then is not begun.

    Attributes:
        tokens: rows that the engine computes for it in one pass: every prompt once.
        cancelled: nobody waits any more.
        queue_seconds: from submission to the first batch; None until then.
        compute_seconds: engine time of the batches that this call had a part in.
    """

    def __init__(
        self, engine: Engine, sequences: Sequence[Encoded], prompts: Sequence[Prompt], deadline: Deadline
    ) -> None:
        self.engine, self.sequences, self.deadline = engine, tuple(sequences), deadline
        self.prompts = tuple(prompts)
        self.tokens = sum(len(own.own) for own in sequences) + sum(len(prompt.ids) for prompt in set(prompts))
        self.cancelled = False
        self.queue_seconds: float | None = None
        self.compute_seconds = 0.0
        self._submitted = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part | ServiceError] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[Part]:
        """The scores, as batches finish; ends when every sequence has one.

        Raises:
            DeadlineExceeded: the deadline passed first.
            ServiceError: what became of the call instead.
        """
        missing = len(self.sequences)
        while missing:
            part = await self._next()
            if isinstance(part, ServiceError):
                raise part
            missing -= len(part.scores)
            yield part

    async def _next(self) -> Part | ServiceError:
        try:
            async with asyncio.timeout(self.deadline.remaining()):
                return await self._parts.get()
        except TimeoutError as error:
            message = "the call's deadline passed before all candidates were scored; send fewer, or a later deadline"
            raise DeadlineExceeded(message) from error

    # ------------------------------------------------------------------------- called on the batcher's thread

    def begun(self) -> float | None:
        """Note that a batch with a part of this call begins; gives the queue time at the first one."""
        if self.queue_seconds is not None:
            return None
        self.queue_seconds = time.monotonic() - self._submitted
        return self.queue_seconds

    def deliver(self, part: Part | ServiceError, compute_seconds: float) -> None:
        """Hand something to the waiting caller."""
        self.compute_seconds += compute_seconds
        if not self._loop.is_closed():  # at shut-down nobody is left to tell
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)
