"""Could a vote have gone another way? Where comparing answers was cut short, two spellings may be one answer.

A judge gives classes and no word on comparisons that timed out, died or found no free worker; answers that it could not
compare stay apart. That can only cost a winner its victory, never hand it one: it matters when losing classes, were
they one answer, would overturn the choice. Only those are asked about once more, so an ordinary vote costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Protocol

from acemath_answers import Verdict, compare_cheaply
from acemath_core.deadline import Deadline
from acemath_gateway.selection import Overturns

_MAX_PAIRS = 32
_UNDECIDED = frozenset({Verdict.TIMEOUT, Verdict.FAILED, Verdict.OVERLOADED})


class Comparer(Protocol):
    """Says whether two answers are the same."""

    async def aequivalent(self, a: str, b: str, *, deadline_s: float) -> Verdict:
        """The verdict within `deadline_s` seconds."""
        ...


async def undecided(judge: Comparer, spelling: Mapping[int, str], overturns: Overturns, *, deadline_s: float) -> int:
    """How many comparisons without a verdict could have made another class win; 0 when the vote stands.

    Args:
        judge: compares.
        spelling: class that lost → one answer of it, those with the most votes first.
        overturns: whether some of them, were they one answer, could have won; see `selection.rivals`.
        deadline_s: longest time for all comparisons; what is open then has no verdict.
    """
    if not overturns(spelling):
        return 0
    pairs = [pair for pair in combinations(spelling, 2) if _is_hard(spelling, pair)]
    deadline, open_ = Deadline.after(deadline_s), pairs[_MAX_PAIRS:]
    for a, b in pairs[:_MAX_PAIRS]:  # one after another: a vote in doubt must not take every worker
        verdict = await judge.aequivalent(spelling[a], spelling[b], deadline_s=deadline.remaining())
        if verdict.is_equal or verdict in _UNDECIDED:  # equal, and yet kept apart: the first time had no verdict
            open_.append((a, b))
    return len(open_) if any(map(overturns, _groups(open_))) else 0


def _is_hard(spelling: Mapping[int, str], pair: tuple[int, int]) -> bool:
    return compare_cheaply(spelling[pair[0]], spelling[pair[1]]) is None


def _groups(pairs: list[tuple[int, int]]) -> Iterable[set[int]]:
    """The classes that would be one if every pair were equal."""
    group: dict[int, set[int]] = {}
    for a, b in pairs:
        joined = group.get(a, {a}) | group.get(b, {b})
        group |= dict.fromkeys(joined, joined)
    return group.values()
