"""A call that takes several passes, computed as a live session is: its prompt once, and others between its cells.

As whole candidates every pass would compute the prompt again, and a candidate longer than a pass would hold up all that
come behind it. A score has the same bits either way (`engine.cells`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from acemath_core.errors import ServiceError
from acemath_reward.admission import SPREAD
from acemath_reward.batching import SLACK, Encoded, Prompt
from acemath_reward.pace import Pace
from acemath_reward.ports import DueCell, LiveError, LiveSession
from acemath_reward.seats import LiveItem, Outcome, Seat
from acemath_reward.tickets import Engine, Part, Ticket
from acemath_reward.waiting import Item

_SHARE = 8
"""A prompt of less than one part in so many of a pass is computed again in each: that costs less than keeping it."""
_AHEAD = 2
"""Passes' worth of candidates that are handed over; only they hold keys and values."""


def is_long(engine: Engine, sequences: Sequence[Encoded], tokens: int) -> bool:
    """Whether a call, of so many tokens in one pass, takes several and is better computed cell by cell."""
    budget = engine.batch_tokens
    if engine.model.server is not None or budget <= 1 or tokens <= budget * (1 + SLACK):
        return False
    prompt = max(len(sequence.prompt) for sequence in sequences)
    return prompt > budget // _SHARE or any(sequence.tokens > budget for sequence in sequences)


class LongCall(Seat):
    """The candidates of a call that share a prompt; made by `Batcher.submit`, changed under the batcher's lock.

    Args:
        ticket: the call.
        items: its candidates with this prompt, in order.
        session: for the prompt.
        pace: the engine's.
    """

    live = False

    def __init__(self, ticket: Ticket, items: Sequence[Item], session: LiveSession, pace: Pace) -> None:
        self._prompt_tokens = len(items[0].sequence.prompt)
        super().__init__(ticket.engine, session, self._prompt_tokens, lambda *_: None)
        self.ticket = ticket
        self._left = deque(items)  # not handed over yet
        self._first, self._owed = items[0].position, {item.position for item in items}
        self._begin, self._done = time.monotonic(), 0
        self._stretch = SPREAD / pace.tokens_per_second

    @property
    def waiting(self) -> int:
        """See `Seat`; what is not handed over yet waits, too."""
        return super().waiting + sum(len(item.sequence.own) for item in self._left)

    def waiting_before(self, age: float) -> int:
        """See `Seat`: only what is older; others step in before the rest."""
        older = int((age - self._begin) / self._stretch) - self._done
        return min(self.waiting, max(0, older))

    @property
    def unscored(self) -> int:
        """Candidates that have no score yet."""
        return len(self._owed)

    def feed(self) -> list[Item]:
        """Hand over what two passes take; gives what must be computed whole, as there is no room to keep anything."""
        while self._left and super().waiting < _AHEAD * self.engine.batch_tokens:
            item = self._left[0]
            try:
                self.extend(item.position, item.sequence.own)
            except LiveError:
                rest = list(self._left)
                self._left.clear()
                self._owed.difference_update(one.position for one in rest)
                return rest
            self.finish(item.position)
            self._left.popleft()
        return []

    def items(self, now: float) -> list[LiveItem]:
        """See `Seat`. A cell's age is a whole candidate's (`waiting`): what comes before it of the call decides."""
        found, before = [], self._done
        for part in [] if self.closed else self.session.due():
            found.append(LiveItem(self, part, self._begin + self._stretch * before))
            before += part.cell.tokens
        return found

    def taken(self, due: DueCell) -> None:
        """See `Seat`."""
        super().taken(due)
        self._done += due.cell.tokens

    def begun(self) -> float | None:
        """See `Ticket`."""
        return self.ticket.begun()

    def computed(self, seconds: float) -> None:
        """See `Seat`."""
        self.ticket.compute_seconds += seconds

    def saved(self, due: DueCell) -> int:
        """Every candidate but the first has the prompt for nothing."""
        return self._prompt_tokens if due.cell.scored and due.candidate != self._first else 0

    def deliver(self, candidate: int | None, outcome: Outcome) -> None:
        """To the call."""
        if self.closed:
            return
        if isinstance(outcome, ServiceError):
            self._owed.clear()  # they have failed, and are not cancelled by the caller that leaves now
            self.ticket.deliver(outcome, 0.0)
        elif candidate is not None and isinstance(outcome, float):  # nobody peeks into a call
            self._owed.discard(candidate)
            self.ticket.deliver(Part(((candidate, outcome),)), 0.0)


class LongCalls:
    """Those under way; used under the batcher's lock.

    Args:
        pace: the engine's.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._calls: dict[Ticket, list[LongCall]] = {}

    def begin(self, ticket: Ticket, items: Sequence[Item]) -> tuple[list[LongCall], list[Item]]:
        """A session for each prompt of a call; and the candidates that there was no room for."""
        prompts: dict[Prompt, list[Item]] = {}
        for item in items:
            prompts.setdefault(item.prompt, []).append(item)
        seats, rest = [], list[Item]()
        for prompt, own in prompts.items():
            try:
                session = ticket.engine.model.open(prompt.ids)
            except LiveError:
                rest += own
                continue
            seats.append(LongCall(ticket, own, session, self._pace))
            rest += seats[-1].feed()
        if seats:
            self._calls[ticket] = seats
        return seats, rest

    def forget(self, tickets: Iterable[Ticket]) -> list[LongCall]:
        """What these calls held, to be left."""
        return [seat for ticket in tickets for seat in self._calls.pop(ticket, ())]

    def expired(self) -> list[LongCall]:
        """What the calls past their deadline held, to be left. Their callers' own timers tell them."""
        return self.forget([ticket for ticket in self._calls if ticket.deadline.expired()])
