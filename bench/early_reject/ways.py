"""The ways to make candidates that are compared: fixed N, adaptive N, and either with early rejection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from acemath_core.calibration import Calibration
from acemath_core.wire import Selection
from acemath_gateway.stopping import StopRules, wave_sizes
from bench.early_reject.rule import EarlyReject
from bench.recorded.pools import Recorded
from bench.recorded.replay import Ran, Stops, adaptive, fixed, none_stopped

KEEPS = (0.25, 0.5, 0.75)
CONFIDENCES = (0.8, 0.9, 0.95)
PAIRED = (0.8, 0.95)
"""Confidences at which adaptive N is replayed with rejection, too."""

Run = Callable[[Selection, Sequence[Recorded], float], Ran]
"""Selection, candidates and the temperature of a weighted vote → what the job came to."""


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: unique.
        facts: what it is, for the results.
        base: name of the way that it is compared with: the same without rejection, or the largest fixed N.
        run: replays it.
    """

    name: str
    facts: dict[str, Any]
    base: str
    run: Run


def ways(n: int, cuts: Sequence[int]) -> list[Way]:
    """Every fixed N up to n, rejection at n, n/2 and n/4, adaptive N, and adaptive N with rejection in each wave."""
    full = f"fixed {n}"
    found = [_fixed(k, f"fixed {k}", {"kind": "fixed"}, full, none_stopped) for k in range(1, n + 1)]
    for k in sorted({max(1, n // 4), max(1, n // 2), n}):
        for rule in _rules(cuts):
            name = f"reject {k}, keep {rule.keep} at {rule.after_tokens}"
            found.append(_fixed(k, name, _facts("reject", rule), f"fixed {k}", rule))
    for confidence in CONFIDENCES:
        name = f"adaptive {confidence}"
        found.append(_adaptive(n, confidence, name, {"kind": "adaptive"}, full, none_stopped))
        for rule in _rules(cuts) if confidence in PAIRED else []:
            both = f"{name}, keep {rule.keep} at {rule.after_tokens}"
            found.append(_adaptive(n, confidence, both, _facts("adaptive and reject", rule), name, rule))
    return found


def _rules(cuts: Sequence[int]) -> list[EarlyReject]:
    return [EarlyReject(cut, keep) for keep in KEEPS for cut in cuts]


def _facts(kind: str, rule: EarlyReject) -> dict[str, Any]:
    return {"kind": kind, "after_tokens": rule.after_tokens, "keep": rule.keep}


def _fixed(k: int, name: str, facts: dict[str, Any], base: str, stops: Stops) -> Way:
    def run(selection: Selection, order: Sequence[Recorded], temperature: float) -> Ran:
        return fixed(selection, order[:k], temperature, stops)

    return Way(name, {**facts, "n": k}, base, run)


def _adaptive(n: int, confidence: float, name: str, facts: dict[str, Any], base: str, stops: Stops) -> Way:
    def run(selection: Selection, order: Sequence[Recorded], temperature: float) -> Ran:
        # A calibration without a curve: the temperature of the vote, and no rule of scores.
        said = Calibration.model_construct(
            reward="replay", temperature=temperature, slope=None, intercept=None, problems=1
        )
        return adaptive(selection, order, StopRules(confidence, said), wave_sizes(n), stops=stops)

    return Way(name, {**facts, "n": n, "confidence": confidence}, base, run)


def mixture(costs: Sequence[float], cost: float) -> tuple[int, float]:
    """The random choice between two neighbouring fixed N that costs as much: the smaller N, and the larger one's share.

    Args:
        costs: mean cost of N = 1, 2, …, which grows.
        cost: what it is to cost; beyond either end the nearest N is taken.
    """
    above = next((i for i, at in enumerate(costs) if at >= cost), len(costs) - 1)
    if above == 0 or costs[above] <= cost:
        return above + 1, 0.0
    share = (cost - costs[above - 1]) / (costs[above] - costs[above - 1])
    return above, 0.0 if math.isclose(share, 0.0) else share
