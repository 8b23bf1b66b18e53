"""Whose turn it is among those who wait for places: the more urgent first, and nobody for ever.

    interactive ─┐
    default ─────┼─► first() ─► asks for its places until it has them, or until somebody else is first
    batch ───────┘

The rule: the most urgent class goes first, within a class the one who came first. Once in every `patience_seconds` it
is the turn of whoever waits longest, if that is at least so long, whatever its class. So a steady stream of urgent
callers lets one of the others pass in so many seconds, and an urgent caller waits for one such turn, never for two.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from acemath_core.wire import Priority

_BY_URGENCY = (Priority.INTERACTIVE, Priority.DEFAULT, Priority.BATCH)


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the queue.

    Attributes:
        priority: its class.
        since: when it was drawn, on the clock of its `Turns`.
        called: set when it may be its turn.
    """

    priority: Priority
    since: float
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """The queue of those who wait.

    Args:
        patience_seconds: after so long somebody's turn comes whatever others want, once in so many seconds.
        now: the clock, in seconds.
    """

    def __init__(self, patience_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._now = patience_seconds, now
        self._queues: dict[Priority, deque[Ticket]] = {priority: deque() for priority in _BY_URGENCY}
        self._last_overdue = -math.inf

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    def before(self, priority: Priority) -> int:
        """How many wait that a newcomer of `priority` comes after: those of its class and of more urgent ones."""
        return sum(len(self._queues[other]) for other in _BY_URGENCY[: _BY_URGENCY.index(priority) + 1])

    def join(self, priority: Priority) -> Ticket:
        """A ticket at the end of its class."""
        ticket = Ticket(priority, self._now())
        self._queues[priority].append(ticket)
        return ticket

    def leave(self, ticket: Ticket, *, served: bool) -> None:
        """Give the ticket back; `served`: because it has what it waited for."""
        if served and self.overdue(ticket):
            self._last_overdue = self._now()
        self._queues[ticket.priority].remove(ticket)
        self._call()

    def first(self) -> Ticket | None:
        """Whose turn it is; None when nobody waits."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        return next((head for head in heads if self.overdue(head)), heads[0] if heads else None)

    def overdue(self, ticket: Ticket) -> bool:
        """Whether it is its turn although somebody more urgent may wait."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        longest = min(heads, key=lambda head: head.since)
        return ticket is longest and self._now() - max(ticket.since, self._last_overdue) >= self._patience

    async def come(self, ticket: Ticket) -> None:
        """Return when it is the ticket's turn. Whoever is first must come back now and then: time moves turns too."""
        while self.first() is not ticket:
            ticket.called.clear()
            self._call()
            await ticket.called.wait()

    def _call(self) -> None:
        first = self.first()
        if first is not None:
            first.called.set()
