"""Candidates that came whole and wait for a pass, oldest first; used under the batcher's lock only.

A candidate's age is the time at which it would be due if the engine worked on its call alone, at `1 / SPREAD` of its
speed. So of calls that came together each gets its turn, and the many candidates of one do not hold up another's few;
and since an age never changes and time goes on, nothing waits for ever.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from acemath_reward.admission import SPREAD
from acemath_reward.batching import Encoded, Offer, Prompt
from acemath_reward.pace import Pace
from acemath_reward.tickets import Ticket

_age = attrgetter("age")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One candidate of a call.

    Attributes:
        ticket: the call.
        position: of the candidate among the call's.
        age: what comes first goes first; monotonic seconds.
    """

    ticket: Ticket
    position: int
    age: float

    @property
    def sequence(self) -> Encoded:
        """Its ids."""
        return self.ticket.sequences[self.position]

    @property
    def prompt(self) -> Prompt:
        """What it waits behind."""
        return self.ticket.prompts[self.position]

    def offer(self) -> Offer:
        """Its part of a pass."""
        return Offer(len(self.sequence.own), self.prompt)


def items_of(ticket: Ticket, now: float, pace: Pace) -> list[Item]:
    """A call's candidates with their ages, when it comes at `now`."""
    items, before = [], 0
    for position, sequence in enumerate(ticket.sequences):
        items.append(Item(ticket, position, now + SPREAD * pace.seconds(before)))
        before += len(sequence.own)
    return items


class Waiting:
    """The queue of candidates that came whole."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._tokens: dict[Ticket, int] = {}  # prompts once a call

    def __len__(self) -> int:
        """Candidates."""
        return len(self._items)

    @property
    def items(self) -> list[Item]:
        """Oldest first; not to be changed."""
        return self._items

    @property
    def tokens(self) -> int:
        """Of all that wait, prompts once a call."""
        return sum(self._tokens.values())

    @property
    def tickets(self) -> list[Ticket]:
        """The calls that wait."""
        return list(self._tokens)

    def add(self, items: Sequence[Item], ticket: Ticket) -> None:
        """Queue items of a call, if there are any."""
        for item in items:
            insort(self._items, item, key=_age)
        if items:
            self._tokens[ticket] = self._tokens.get(ticket, 0) + _rows(items)

    def tokens_before(self, age: float) -> int:
        """Of what is older than `age`; no less than it is, as a call's prompt counts whole."""
        older = [item for item in self._items if item.age < age]
        prompts = {item.ticket: len(item.sequence.prompt) for item in older}
        return sum(len(item.sequence.own) for item in older) + sum(prompts.values())

    def expired(self) -> int:
        """Take out what is past its deadline; gives how many. Their callers' own timers tell them."""
        return self.forget({item.ticket for item in self._items if item.ticket.deadline.expired()})

    def forget(self, tickets: Iterable[Ticket]) -> int:
        """Take out all that waits of these calls; gives how many candidates."""
        gone = set(tickets)
        before = len(self._items)
        if gone:
            self._items = [item for item in self._items if item.ticket not in gone]
            self._recount(gone)
        return before - len(self._items)

    def take(self, items: Iterable[Item]) -> None:
        """Take these out."""
        taken = set(items)
        if taken:
            self._items = [item for item in self._items if item not in taken]
            self._recount({item.ticket for item in taken})

    def _recount(self, tickets: set[Ticket]) -> None:
        left: dict[Ticket, list[Item]] = {}
        for item in self._items:
            if item.ticket in tickets:
                left.setdefault(item.ticket, []).append(item)
        for ticket in tickets:
            self._tokens.pop(ticket, None)
            if ticket in left:
                self._tokens[ticket] = _rows(left[ticket])


def _rows(items: Sequence[Item]) -> int:
    """What they cost together."""
    prompts = {item.prompt for item in items}
    return sum(len(item.sequence.own) for item in items) + sum(len(prompt.ids) for prompt in prompts)
