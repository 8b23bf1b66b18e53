"""Figures of replays: the same random orders for every way, and intervals over problems or their templates."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from acemath_evaluation.intervals import Array, Estimate
from bench.recorded.pools import Recorded, RecordedSet
from bench.recorded.replay import Ran

Orders = Sequence[Sequence[Recorded]]
"""Several orders of one problem's candidates."""

COLUMNS = ("accuracy", "cost", "candidates", "steps")
"""What `means` gives."""


def orders_of(recorded: RecordedSet, count: int) -> list[Orders]:
    """`count` random draws of n candidates of each problem, always the same ones."""
    named = zip(recorded.names, recorded.problems, strict=True)
    return [[_order(pool, recorded.n, f"{name}:{number}") for number in range(count)] for name, pool in named]


def _order(pool: Sequence[Recorded], n: int, seed: str) -> list[Recorded]:
    drawn = random.Random(seed).sample(pool, n)
    return [replace(candidate, index=place) for place, candidate in enumerate(drawn)]


def means(runs: Sequence[Ran]) -> list[float]:
    """One problem's `COLUMNS` over its orders."""
    table = [(run.correct, run.cost, run.generated, run.steps) for run in runs]
    return [float(mean) for mean in np.mean(table, axis=0)]


def saved(own: Array, full: Array, clusters: Sequence[str], resamples: int) -> dict[str, float]:
    """1 - sum(own) / sum(full), with the percentiles of a bootstrap over clusters."""
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(place), 2))
    np.add.at(sums, [place[name] for name in clusters], np.stack([own, full], axis=1))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples) @ sums
    low, high = np.quantile(1 - drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return {"value": float(1 - own.sum() / full.sum()), "low": float(low), "high": float(high)}


def as_json(estimate: Estimate) -> dict[str, float]:
    """An estimate as results keep it."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def shares(found: Counter[str]) -> dict[str, float]:
    """Counts as shares."""
    return {reason: round(count / found.total(), 4) for reason, count in sorted(found.items())}


def percent(estimate: Mapping[str, float] | None) -> str:
    """A share in percent with its interval; nothing where there is none."""
    if estimate is None:
        return ""
    value, low, high = (f"{100 * estimate[key]:.1f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
