"""Bootstrap intervals over problems, or over the templates that problems were made from.

Problems from one template are right and wrong together; drawing problems as if they were independent would make the
interval too narrow. The cluster bootstrap draws whole templates (Field & Welsh 2007, "Bootstrapping clustered data").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 500

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its percentile interval at level `LEVEL`."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap(values: Array, clusters: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Estimate]:
    """Return the mean of every column of `values` [problems, columns] with its interval.

    All columns are resampled together, so that a column which is a difference of two gets its paired interval.
    A resample's mean is over the problems in it, however large its clusters are.
    """
    sums, counts = _by_cluster(values, clusters)
    rng = np.random.default_rng(seed)
    means = np.concatenate([_resampled(sums, counts, rng, size) for size in _blocks(resamples)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    middle = values.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(middle, low, high, strict=True)]


def _by_cluster(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Return the sum of each column [clusters, columns] and the number of problems [clusters, 1] of each cluster."""
    position = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    of_problem = np.array([position[name] for name in clusters])
    sums = np.zeros((len(position), values.shape[1]))
    np.add.at(sums, of_problem, values)
    return sums, np.bincount(of_problem, minlength=len(position)).astype(np.float64)[:, None]


def _resampled(sums: Array, counts: Array, rng: np.random.Generator, size: int) -> Array:
    """Return the means of `size` resamples [size, columns]."""
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size).astype(np.float64)
    means: Array = (drawn @ sums) / (drawn @ counts)
    return means


def _blocks(resamples: int) -> list[int]:
    """Split the resamples so that the matrix of draws stays small."""
    whole, rest = divmod(resamples, _BLOCK)
    return [_BLOCK] * whole + ([rest] if rest else [])
