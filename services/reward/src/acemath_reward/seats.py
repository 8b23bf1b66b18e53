"""Live sessions at the batcher: what arrived for each, since when a cell of it is due, and whom its scores go to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acemath_core.errors import ServiceError
from acemath_reward.batching import Offer
from acemath_reward.ports import DueCell, LiveSession
from acemath_reward.tickets import Engine

HEAD_START = 1.0
"""Seconds that a finished candidate counts as having waited longer than it has: somebody waits for its score now.

That is all its precedence: whatever has waited longer than that goes first, so it holds up nothing for ever.
"""

Outcome = float | ServiceError
Listener = Callable[[int | None, Outcome], None]
"""Takes a candidate's score, or what became of it instead; of the whole session when the candidate is None."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveItem:
    """A due cell.

    Attributes:
        seat: whose.
        due: the cell.
        age: what comes first goes first; monotonic seconds.
    """

    seat: Seat
    due: DueCell
    age: float

    def offer(self) -> Offer:
        """Its part of a pass: behind the session's prompt and its candidate's earlier cells."""
        candidate = self.due.candidate
        key = (self.seat, candidate)
        chain = (key,) if candidate is None else ((self.seat, None), key)
        waited_for = self.seat.waited_for(candidate)
        return Offer(self.due.cell.tokens, chain=chain, hurried=waited_for and self.seat.live, idle=not waited_for)


class Seat:
    """One live session; made by `Batcher.open`, changed under the batcher's lock.

    Args:
        engine: computes it.
        session: of that engine.
        prompt_tokens: of the session's prompt.
        listener: called on the event loop.

    Attributes:
        closed: nobody wants anything of it any more.
        live: its candidates are still being written; otherwise it is a call that takes several passes (`long_calls`).
    """

    live = True

    def __init__(self, engine: Engine, session: LiveSession, prompt_tokens: int, listener: Listener) -> None:
        self.engine, self.session = engine, session
        self.closed = False
        self._pending: dict[int | None, int] = {None: prompt_tokens}  # tokens that came and are in no pass yet
        self._listener, self._loop = listener, asyncio.get_running_loop()
        self._since: dict[int | None, float] = {None: time.monotonic()}
        self._received: dict[int, int] = {}
        self._ended: dict[int, float] = {}

    @property
    def waiting(self) -> int:
        """Tokens that came and are in no pass yet."""
        return sum(self._pending.values())

    def waiting_before(self, age: float) -> int:
        """How much of that may be computed before something of this age."""
        return self.waiting

    def waited_for(self, candidate: int | None) -> bool:
        """Whether a score waits for it: a candidate that has ended, or the prompt of one."""
        return bool(self._ended) if candidate is None else candidate in self._ended

    def extend(self, candidate: int, ids: Sequence[int]) -> bool:
        """Hand ids to the session; gives whether a cell became due. Raises as `LiveSession.extend`."""
        self.session.extend(candidate, ids)
        size = self.engine.model.cell_tokens
        before = self._received.get(candidate, 0)
        after = self._received[candidate] = before + len(ids)
        self._pending[candidate] = self._pending.get(candidate, 0) + len(ids)
        if (after - 1) // size <= max(before - 1, 0) // size:
            return False
        self._since.setdefault(candidate, time.monotonic())
        return True

    def finish(self, candidate: int) -> None:
        """No more ids come for it. Raises as `LiveSession.finish`."""
        self.session.finish(candidate)
        self._ended[candidate] = time.monotonic()

    def items(self, now: float) -> list[LiveItem]:
        """What is due, each candidate's cells in order; on the engine's thread."""
        due = [] if self.closed else self.session.due()
        return [LiveItem(self, part, self._age(part.candidate, now)) for part in due]

    def taken(self, candidate: int | None, tokens: int) -> None:
        """A cell goes into a pass; what is due of the candidate from now on has waited from now on."""
        self._pending[candidate] = max(0, self._pending.get(candidate, 0) - tokens)
        self._since.pop(candidate, None)

    def begun(self) -> float | None:
        """A pass with a part of it begins; gives the queue time of a call at the first one."""
        return None

    def computed(self, seconds: float) -> None:
        """A pass with a part of it took so long."""

    def saved(self, due: DueCell) -> int:
        """Tokens that this cell's candidate would have cost more by itself."""
        return 0

    def drop(self, candidate: int) -> None:
        """Forget a candidate."""
        self.session.drop(candidate)
        for known in (self._pending, self._since, self._received, self._ended):
            known.pop(candidate, None)

    def close(self) -> None:
        """Free what it holds; a pass under way finishes without it."""
        self.closed = True
        self.session.close()
        self._pending.clear()

    def seconds_since_end(self, candidate: int) -> float:
        """How long ago the candidate ended; 0 for one that was dropped meanwhile."""
        now = time.monotonic()
        return now - self._ended.get(candidate, now)

    def deliver(self, candidate: int | None, outcome: Outcome) -> None:
        """Hand something to whoever listens."""
        if not self.closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._listener, candidate, outcome)

    def _age(self, candidate: int | None, now: float) -> float:
        since = self._since.setdefault(candidate, now)
        if candidate is None:  # its candidates' cells wait for it
            return min(*self._since.values(), since, *(end - HEAD_START for end in self._ended.values()))
        ended = self._ended.get(candidate)
        return since if ended is None else min(since, ended - HEAD_START)
