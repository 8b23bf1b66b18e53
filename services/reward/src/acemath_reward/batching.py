"""Which waiting candidates make the next batch; pure, so that it can be read and tested by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from acemath_reward.ports import PromptGroup, TokenIds


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


def cost(sequences: Iterable[Encoded]) -> int:
    """Rows that the engine computes for these together: every prompt once."""
    prompts: set[TokenIds] = set()
    total = 0
    for sequence in sequences:
        total += len(sequence.own)
        if sequence.prompt not in prompts:
            prompts.add(sequence.prompt)
            total += len(sequence.prompt)
    return total


def choose(waiting: Sequence[Encoded], budget: int) -> list[int]:
    """Positions of the sequences for one batch, given oldest first.

    The oldest is always among them, however long it is; behind it, by age, whatever still fits, so that what is
    passed over comes nearer to being the oldest with every batch and nothing waits for ever.
    """
    prompts: set[TokenIds] = set()
    chosen: list[int] = []
    total = 0
    for position, sequence in enumerate(waiting):
        added = len(sequence.own) + (0 if sequence.prompt in prompts else len(sequence.prompt))
        if chosen and total + added > budget:
            continue
        prompts.add(sequence.prompt)
        chosen.append(position)
        total += added
        if total >= budget:
            break
    return chosen


def group(sequences: Sequence[Encoded]) -> tuple[list[PromptGroup], list[list[int]]]:
    """Sequences by prompt, in order of first appearance, with the positions that each group's candidates came from."""
    positions: dict[TokenIds, list[int]] = {}
    for position, sequence in enumerate(sequences):
        positions.setdefault(sequence.prompt, []).append(position)
    groups = [PromptGroup(prompt, tuple(sequences[i].own for i in where)) for prompt, where in positions.items()]
    return groups, list(positions.values())
