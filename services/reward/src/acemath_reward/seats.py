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


@dataclass(frozen=True, slots=True)
class Peeked:
    """What a candidate were worth if it had ended when that was asked; a float32 number, or none (NaN, infinite)."""

    score: float


Outcome = float | Peeked | ServiceError
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
        """Its part of a pass: behind the session's prompt and its candidate's, or its peek's, earlier cells."""
        candidate, tokens, peek = self.due.candidate, self.due.cell.tokens, self.due.peek
        key = (self.seat, candidate, peek)
        chain = (key,) if candidate is None else ((self.seat, None, False), key)
        hurried = self.seat.live and not peek and self.seat.ended(candidate)
        return Offer(tokens, chain=chain, hurried=hurried, idle=not self.seat.waited_for(candidate))


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
        self._peeks: dict[int, tuple[float, int]] = {}  # asked when, and its tokens that are in no pass yet

    @property
    def waiting(self) -> int:
        """Tokens that came and are in no pass yet."""
        return sum(self._pending.values()) + sum(tokens for _, tokens in self._peeks.values())

    def waiting_before(self, age: float) -> int:
        """How much of that may be computed before something of this age."""
        return self.waiting

    def ended(self, candidate: int | None) -> bool:
        """Whether it is a candidate that has ended, or the prompt of one."""
        return bool(self._ended) if candidate is None else candidate in self._ended

    def waited_for(self, candidate: int | None) -> bool:
        """Whether a score waits for it: of a candidate that has ended, a partial one, or one behind this prompt."""
        return self.ended(candidate) or (bool(self._peeks) if candidate is None else candidate in self._peeks)

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
        self._peeks.pop(candidate, None)
        self._ended[candidate] = time.monotonic()

    def peek(self, candidate: int, closing: Sequence[int]) -> None:
        """A partial score is wanted. Raises as `LiveSession.peek`."""
        tokens = self.session.peek(candidate, closing)
        self._peeks[candidate] = time.monotonic(), tokens

    def items(self, now: float) -> list[LiveItem]:
        """What is due, each candidate's cells in order; on the engine's thread."""
        due = [] if self.closed else self.session.due()
        return [LiveItem(self, part, self._age(part, now)) for part in due]

    def taken(self, due: DueCell) -> None:
        """A cell goes into a pass; what is due of the candidate from now on has waited from now on."""
        candidate, tokens = due.candidate, due.cell.tokens
        if candidate is not None and due.peek:
            self._taken_of_peek(candidate, due)
            return
        self._pending[candidate] = max(0, self._pending.get(candidate, 0) - tokens)
        self._since.pop(candidate, None)

    def _taken_of_peek(self, candidate: int, due: DueCell) -> None:
        since, tokens = self._peeks.pop(candidate)
        if not due.cell.scored:
            self._peeks[candidate] = since, tokens - due.cell.tokens

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
        for known in (self._pending, self._since, self._received, self._ended, self._peeks):
            known.pop(candidate, None)

    def close(self) -> None:
        """Free what it holds; a pass under way finishes without it."""
        self.closed = True
        self.session.close()
        self._pending.clear()
        self._peeks.clear()

    def seconds_since_end(self, candidate: int) -> float:
        """How long ago the candidate ended; 0 for one that was dropped meanwhile."""
        now = time.monotonic()
        return now - self._ended.get(candidate, now)

    def deliver(self, candidate: int | None, outcome: Outcome) -> None:
        """Hand something to whoever listens."""
        if not self.closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._listener, candidate, outcome)

    def _age(self, due: DueCell, now: float) -> float:
        candidate = due.candidate
        if candidate is not None and due.peek:
            return self._peeks[candidate][0]
        since = self._since.setdefault(candidate, now)
        if candidate is None:  # its candidates' cells wait for it
            asked = [begin for begin, _ in self._peeks.values()]
            return min(*self._since.values(), since, *asked, *(end - HEAD_START for end in self._ended.values()))
        ended, (begin, _) = self._ended.get(candidate), self._peeks.get(candidate, (since, 0))
        return min(since, begin) if ended is None else min(since, ended - HEAD_START)
