"""What of all that waits makes the next pass; pure, so that it can be read and tested by itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from acemath_reward.ports import PromptGroup, TokenIds

SLACK = 0.25
"""Share of its budget by which a pass may be larger when it is the last one then."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One candidate as the engine takes it.

    Attributes:
        prompt: ids that come from the context alone; the same for (nearly) all candidates of a call.
        own: the rest, at least one id.
    """

    prompt: TokenIds
    own: TokenIds

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return len(self.prompt) + len(self.own)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Prompt:
    """A prompt that something waits behind; of `Prompts`, equal ids are one object.

    So the queue, which holds a lock for it, compares objects and never ids: of a long prompt they take as long to hash
    as a candidate takes to be looked at.
    """

    ids: TokenIds


NO_PROMPT = Prompt(())


class Prompts:
    """The prompts of all that waits; used on one thread, and each is forgotten with the last that waits behind it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[TokenIds, Prompt] = WeakValueDictionary()

    def of(self, sequences: Sequence[Encoded]) -> tuple[Prompt, ...]:
        """The prompt of each; ids that are one object are hashed once."""
        seen: dict[int, Prompt] = {}
        for sequence in sequences:
            if id(sequence.prompt) not in seen:
                made = Prompt(sequence.prompt)
                seen[id(sequence.prompt)] = self._known.setdefault(sequence.prompt, made)
        return tuple(seen[id(sequence.prompt)] for sequence in sequences)


@dataclass(frozen=True, slots=True)
class Offer:
    """Something that may go into the next pass.

    Attributes:
        tokens: rows that the engine computes for it, without `prompt`.
        prompt: a pass computes its ids once for all that share it.
        chain: what it comes after: what is left out keeps out all that come later under the last key of its chain.
        hurried: it ends a live candidate, so its pass takes no `idle` ones behind it, to be short.
        idle: nobody waits for it yet: a cell of a live candidate that is still being written.
    """

    tokens: int
    prompt: Prompt = NO_PROMPT
    chain: tuple[Hashable, ...] = ()
    hurried: bool = False
    idle: bool = False


def choose(waiting: Sequence[Offer], budget: int) -> list[int]:
    """Positions of the offers for one pass, given oldest first.

    The oldest is always among them, however long it is; behind it, by age, whatever still fits, so that what is
    passed over comes nearer to being the oldest with every pass and nothing waits for ever.
    """
    prompts: set[Prompt] = set()
    barred: set[Hashable] = set()
    chosen: list[int] = []
    total, hurry = 0, False
    budget = _enough_for_all(waiting, budget)
    for position, offer in enumerate(waiting):
        if (hurry and offer.idle) or not barred.isdisjoint(offer.chain):
            barred.update(offer.chain[-1:])
            continue
        added = offer.tokens + (0 if offer.prompt in prompts else len(offer.prompt.ids))
        if chosen and total + added > budget:
            barred.update(offer.chain[-1:])
            continue
        prompts.add(offer.prompt)
        chosen.append(position)
        total, hurry = total + added, hurry or offer.hurried
        if total >= budget:
            break
    return chosen


def _enough_for_all(waiting: Sequence[Offer], budget: int) -> int:
    """The budget, or a little more where that saves a last small pass, which costs far more than its tokens."""
    prompts = {offer.prompt for offer in waiting}
    everything = sum(offer.tokens for offer in waiting) + sum(len(prompt.ids) for prompt in prompts)
    return everything if everything <= budget * (1 + SLACK) else budget


def group(sequences: Sequence[Encoded]) -> tuple[list[PromptGroup], list[list[int]]]:
    """Sequences by prompt, in order of first appearance, with the positions that each group's candidates came from."""
    positions: dict[TokenIds, list[int]] = {}
    for position, sequence in enumerate(sequences):
        positions.setdefault(sequence.prompt, []).append(position)
    groups = [PromptGroup(prompt, tuple(sequences[i].own for i in where)) for prompt, where in positions.items()]
    return groups, list(positions.values())
