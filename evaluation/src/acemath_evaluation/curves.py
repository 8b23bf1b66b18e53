"""Values of the metrics at k, by drawing k of a problem's candidates at random.

After AceMath-RewardBench (arXiv 2412.15084, §4.3.1): 100 seeds, k of the pool without replacement, the mean over seeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acemath_evaluation.intervals import Array, Estimate, bootstrap
from acemath_evaluation.metrics import CONTROLS, METRICS, GradedProblem, values

DRAWS = 100


@dataclass(frozen=True, slots=True)
class Measured:
    """All metrics at one k, and rm@k minus each control, paired."""

    k: int
    metrics: dict[str, Estimate]
    gains: dict[str, Estimate]


def measure(problems: Sequence[GradedProblem], k: int, *, seed: int = 0) -> Measured:
    """Return every metric at k with its interval; every problem must have at least k candidates.

    A problem with exactly k is taken as it is, in its order; of one with more, `DRAWS` random draws are averaged.
    """
    table = np.array([values_at(problem, k, seed=seed) for problem in problems])
    columns = np.concatenate([table, _gains(table)], axis=1)
    lowest = [0.0] * len(METRICS) + [-1.0] * len(CONTROLS)
    limits = lowest, [1.0] * len(lowest)
    estimates = bootstrap(columns, [problem.cluster for problem in problems], seed=seed, limits=limits)
    return Measured(
        k,
        metrics=dict(zip(METRICS, estimates, strict=False)),
        gains=dict(zip(CONTROLS, estimates[len(METRICS) :], strict=True)),
    )


def curve(problems: Sequence[GradedProblem], n: int, *, seed: int = 0) -> list[Measured]:
    """Return the metrics at 1, 2, 4, … up to n, which is always the last point."""
    steps = sorted({n, *(2**power for power in range(n.bit_length()) if 2**power <= n)})
    return [measure(problems, k, seed=seed) for k in steps]


def values_at(problem: GradedProblem, k: int, *, seed: int = 0) -> Array:
    """Return each of `METRICS` of one problem at k [metrics]; the draws follow from its id and the seed."""
    candidates, rng = problem.candidates, random.Random(f"{seed}:{problem.id}")
    if len(candidates) == k:
        return np.array(values(candidates, rng))
    draws = [[candidates[i] for i in sorted(rng.sample(range(len(candidates)), k))] for _ in range(DRAWS)]
    mean: Array = np.mean([values(draw, rng) for draw in draws], axis=0)
    return mean


def _gains(table: Array) -> Array:
    reward = table[:, [METRICS.index("rm")]]
    return reward - table[:, [METRICS.index(control) for control in CONTROLS]]
