"""One job again, on recorded candidates in a given order: the rules are those of the gateway, the world is simpler.

Candidates of a wave are written in step, one token each at a time, as a batch of vLLM does it: they end in the order of
their length, and a score is there the moment its candidate ends. When the answer is settled, what still runs has cost
as many tokens as the candidate that settled it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from acemath_core.wire import Selection, StopReason
from acemath_gateway.selection import TEMPERATURE, select, temperature_of
from acemath_gateway.stopping import StopRules, cannot_change, settled
from bench.adaptive.pools import Recorded


@dataclass(frozen=True, slots=True)
class Ran:
    """What a job came to.

    Attributes:
        correct: whether its answer is right.
        cost: all that was written, also of candidates that were cut off.
        generated: candidates that ended.
        steps: lengths of the longest candidates of the waves, added up: what decoding takes when a step takes
            equally long for few and for many.
        reason: why it stopped early, or None.
    """

    correct: bool
    cost: int
    generated: int
    steps: int
    reason: StopReason | None


def fixed(selection: Selection, order: Sequence[Recorded], temperature: float = TEMPERATURE) -> Ran:
    """All of these candidates at once."""
    costs = [candidate.cost for candidate in order]
    chosen = _choose(selection, order, temperature)
    return Ran(chosen.correct, sum(costs), len(order), max(costs), None)


def adaptive(
    selection: Selection,
    order: Sequence[Recorded],
    rules: StopRules,
    waves: Sequence[int],
    *,
    bets_within: bool = False,
) -> Ran:
    """The candidates in waves until the answer is settled.

    Args:
        selection: how the answer is chosen.
        order: all candidates, in the order of their seeds.
        rules: how sure to be.
        waves: sizes, `len(order)` together.
        bets_within: ask for bets whenever a candidate ends, and cut off the others of its wave, which the gateway
            does only when the answer cannot change.
    """
    done: list[Recorded] = []
    cost = steps = start = 0
    for size in waves:
        wave = sorted(order[start : start + size], key=lambda c: (c.cost, c.index))
        start += size
        for place, candidate in enumerate(wave):
            done.append(candidate)
            reason = _reason(rules, selection, done, len(order) - len(done), bets_within or place == size - 1)
            if reason is not None:
                rest = (size - place) * candidate.cost
                spent = cost + sum(c.cost for c in wave[:place]) + rest
                chosen = _choose(selection, done, temperature_of(rules.calibration))
                return Ran(chosen.correct, spent, len(done), steps + candidate.cost, reason)
        cost, steps = cost + sum(c.cost for c in wave), steps + wave[-1].cost
    whole = fixed(selection, done, temperature_of(rules.calibration))
    return replace(whole, cost=cost, steps=steps)


def _reason(
    rules: StopRules, selection: Selection, done: Sequence[Recorded], remaining: int, bets: bool
) -> StopReason | None:
    if bets:
        return settled(rules, selection, done, remaining)
    return StopReason.CANNOT_CHANGE if remaining and cannot_change(selection, done, remaining) else None


def _choose(selection: Selection, done: Sequence[Recorded], temperature: float) -> Recorded:
    scored = any(candidate.score is not None for candidate in done)
    return select(selection if scored else Selection.MAJORITY, done, temperature)
