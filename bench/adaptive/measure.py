"""Accuracy and cost of every policy on one set, with intervals over its problems, beside the largest fixed N."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acemath_core.calibration import Calibration
from acemath_core.wire import Selection
from acemath_evaluation.intervals import Array, bootstrap
from acemath_gateway.stopping import FIRST_WAVE, StopRules, wave_sizes
from bench.recorded.figures import COLUMNS, Orders, as_json, means, saved, shares
from bench.recorded.pools import Recorded, RecordedSet
from bench.recorded.replay import Ran, adaptive, fixed

CONFIDENCES = (0.8, 0.85, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Way:
    """One way to make candidates: its name, what it is, and how it runs on an order of them."""

    name: str
    facts: dict[str, Any]
    run: Callable[[Selection, Sequence[Recorded]], Ran]


def ways(n: int, calibration: Calibration | None) -> list[Way]:
    """Fixed N up to n, the gateway's rules at several confidences, and what else could be done at two of them."""
    steps = sorted({n, *(2**power for power in range(n.bit_length()) if 2**power <= n)})
    found = [Way(f"fixed {k}", {"kind": "fixed", "n": k}, _fixed(k)) for k in steps]
    for confidence in CONFIDENCES:
        found.append(_adaptive(f"adaptive {confidence}", StopRules(confidence), wave_sizes(n)))
    for confidence in (0.9, 0.95):
        rules = StopRules(confidence)
        found.append(_adaptive(f"bets within waves {confidence}", rules, wave_sizes(n), bets_within=True))
        found.append(_adaptive(f"doubling waves {confidence}", rules, _doubling(n)))
        found.append(_adaptive(f"bets within doubling waves {confidence}", rules, _doubling(n), bets_within=True))
        if calibration is not None:
            found.append(_adaptive(f"with score {confidence}", StopRules(confidence, calibration), wave_sizes(n)))
    found.append(_adaptive("exact only", StopRules(math.inf), wave_sizes(n)))
    return found


def _doubling(n: int) -> list[int]:
    """Waves each of which makes as many candidates as there are: fewer looks, and fewer waves to wait for."""
    sizes = [min(FIRST_WAVE, n)]
    while (made := sum(sizes)) < n:
        sizes.append(min(made, n - made))
    return sizes


def measure(
    recorded: RecordedSet, orders: Sequence[Orders], selection: Selection, way_list: Sequence[Way], resamples: int
) -> list[dict[str, Any]]:
    """One row for each way; all on the same orders of each problem, so that every difference is paired."""
    tables, reasons = [], []
    for way in way_list:
        ran = [[way.run(selection, order) for order in of_problem] for of_problem in orders]
        tables.append(np.array([means(runs) for runs in ran]))
        reasons.append(Counter(run.reason.value if run.reason else "complete" for runs in ran for run in runs))
    full = tables[[way.name for way in way_list].index(f"fixed {recorded.n}")]
    return [
        {"way": way.name, **way.facts, **_row(table, full, recorded.clusters, resamples), "reasons": shares(found)}
        for way, table, found in zip(way_list, tables, reasons, strict=True)
    ]


def _fixed(k: int) -> Callable[[Selection, Sequence[Recorded]], Ran]:
    return lambda selection, order: fixed(selection, order[:k])


def _adaptive(name: str, rules: StopRules, waves: list[int], *, bets_within: bool = False) -> Way:
    facts = {"kind": "adaptive", "confidence": min(rules.confidence, 1.0), "waves": waves, "bets_within": bets_within}
    return Way(
        name,
        facts | {"score": rules.calibration is not None},
        lambda selection, order: adaptive(selection, order, rules, waves, bets_within=bets_within),
    )


def _row(table: Array, full: Array, clusters: Sequence[str], resamples: int) -> dict[str, Any]:
    columns = np.concatenate([table, table[:, :1] - full[:, :1]], axis=1)
    most = [1.0, *columns[:, 1:4].max(axis=0), 1.0]
    both = bootstrap(columns, clusters, resamples=resamples, limits=([0.0, 0.0, 0.0, 0.0, -1.0], most))
    row = {name: as_json(estimate) for name, estimate in zip(COLUMNS, both, strict=False)}
    savings = {
        "cost_saved": saved(table[:, 1], full[:, 1], clusters, resamples),
        "steps_saved": saved(table[:, 3], full[:, 3], clusters, resamples),
    }
    return row | {"accuracy_difference": as_json(both[-1])} | savings
