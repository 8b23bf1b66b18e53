"""Medians with their spread, paired ratios, and how far two systems' scores are apart."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.reward.groups import Scores


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and extremes; nothing of nothing."""
    if not values:
        return {}
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in named.items()} | {"n": len(values)}


def paired_ratios(peer: Mapping[int, float], ours: Mapping[int, float]) -> dict[str, float]:
    """Spread of peer's seconds / our seconds over the rounds that both have: above 1, ours is faster."""
    return spread([peer[turn] / ours[turn] for turn in sorted(peer.keys() & ours.keys())], 3)


def differences(a: Scores, b: Scores) -> dict[str, Any]:
    """How far two systems are apart, in logits and in the order of candidates.

    Kendall's tau is tau-a: pairs in the same order minus pairs in the other, of all pairs; a tie counts as neither.
    """
    flat = [abs(x - y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    ranked = [(row, other) for row, other in zip(a, b, strict=True) if len(row) > 1]
    return {
        "largest_difference": max(flat),
        "mean_difference": sum(flat) / len(flat),
        "same_best": sum(_best(row) == _best(other) for row, other in ranked),
        "problems": len(ranked),
        "kendall_tau": sum(kendall_tau(*pair) for pair in ranked) / len(ranked) if ranked else None,
    }


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Tau-a of two rankings of the same things; 1 where there is nothing to order."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same = sum(_sign(a[i] - a[j]) * _sign(b[i] - b[j]) for i, j in pairs)
    return same / len(pairs) if pairs else 1.0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _best(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)
