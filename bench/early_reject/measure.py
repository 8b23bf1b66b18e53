"""Accuracy and tokens of every way, paired with the same without rejection and with fixed N of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acemath_core.wire import Selection
from acemath_evaluation.intervals import Array, bootstrap
from bench.early_reject.ways import Way, mixture
from bench.recorded.figures import COLUMNS, as_json, means, orders_of, saved
from bench.recorded.pools import RecordedSet

_DIFFERENCES = ("minus_base", "minus_same_tokens", "minus_full")


@dataclass(frozen=True)
class Replayed:
    """What the ways came to on some problems.

    Attributes:
        name: of the set.
        clusters: of each problem, what the bootstrap draws.
        tables: name of a way → [problems, `COLUMNS`], means over the orders.
    """

    name: str
    clusters: tuple[str, ...]
    tables: Mapping[str, Array]


def replay(
    recorded: RecordedSet, selection: Selection, found: Sequence[Way], orders: int, temperature: float
) -> Replayed:
    """Run every way on the same orders of each problem's candidates."""
    drawn = orders_of(recorded, orders)
    tables = {
        way.name: np.array([means([way.run(selection, order, temperature) for order in some]) for some in drawn])
        for way in found
    }
    return Replayed(recorded.name, recorded.clusters, tables)


def joined(parts: Sequence[Replayed]) -> Replayed:
    """The problems of several sets as one; each was replayed at its own temperature."""
    clusters = tuple(cluster for part in parts for cluster in part.clusters)
    tables = {name: np.concatenate([part.tables[name] for part in parts]) for name in parts[0].tables}
    return Replayed("+".join(part.name for part in parts), clusters, tables)


def rows(replayed: Replayed, found: Sequence[Way], resamples: int) -> list[dict[str, Any]]:
    """One row for each way: `COLUMNS`, three paired differences of accuracy, and what it saves, with intervals.

    `minus_same_tokens` is to a random choice between two neighbouring fixed N whose mean cost over these problems is
    the way's; the choice is taken as given when problems are resampled.
    """
    fixed = [way.name for way in found if way.facts["kind"] == "fixed"]
    return [_row(replayed, way, fixed, resamples) for way in found]


def _row(replayed: Replayed, way: Way, fixed: Sequence[str], resamples: int) -> dict[str, Any]:
    own, base, full = (replayed.tables[name] for name in (way.name, way.base, fixed[-1]))
    costs = [float(replayed.tables[name][:, 1].mean()) for name in fixed]
    n, share = mixture(costs, float(own[:, 1].mean()))
    alike = (1 - share) * replayed.tables[fixed[n - 1]][:, 0]
    alike = alike + (share * replayed.tables[fixed[n]][:, 0] if share else 0.0)
    differences = np.stack([own[:, 0] - other for other in (base[:, 0], alike, full[:, 0])], axis=1)
    columns = np.concatenate([own, differences], axis=1)
    limits = ([0.0] * 4 + [-1.0] * 3, [1.0, *own[:, 1:].max(axis=0), 1.0, 1.0, 1.0])
    estimates = bootstrap(columns, replayed.clusters, resamples=resamples, limits=limits)
    named = dict(zip((*COLUMNS, *_DIFFERENCES), map(as_json, estimates), strict=True))
    savings = {
        f"{name}_saved": saved(own[:, 1], other[:, 1], replayed.clusters, resamples)
        for name, other in (("base", base), ("full", full))
    }
    return {"way": way.name, **way.facts, "base": way.base, "same_tokens_as": n + share, **named, **savings}
