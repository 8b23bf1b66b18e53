from __future__ import annotations

import numpy as np
import pytest

from acemath_evaluation.intervals import bootstrap


def _coverage(clustered: bool, *, by_cluster: bool) -> float:
    """How often the interval holds the true mean, 0.3, over 200 made-up studies of 20 clusters of 10."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        spread = rng.beta(0.6, 1.4, size=20) if clustered else np.full(20, 0.3)
        values = rng.binomial(1, np.repeat(spread, 10)).astype(float)[:, None]
        names = [str(i // 10 if by_cluster else i) for i in range(200)]
        (estimate,) = bootstrap(values, names, seed=1, resamples=200)
        hits += estimate.low <= 0.3 <= estimate.high
    return hits / 200


def test_coverage_over_problems() -> None:
    assert 0.88 <= _coverage(False, by_cluster=False) <= 0.99


def test_templates_need_the_cluster_bootstrap() -> None:
    assert 0.88 <= _coverage(True, by_cluster=True) <= 0.99
    assert _coverage(True, by_cluster=False) < 0.75


def test_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(size=(500, 1))
    (estimate,) = bootstrap(values, [str(i) for i in range(500)])
    half = 1.96 * values.std() / np.sqrt(500)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    base = rng.binomial(1, 0.5, size=400).astype(float)
    better = np.maximum(base, rng.binomial(1, 0.1, size=400))
    a, b, gain = bootstrap(np.stack([base, better, better - base], axis=1), [str(i) for i in range(400)])
    assert gain.excludes_zero
    assert a.high > b.low  # unpaired, the two intervals overlap
    assert gain.value == pytest.approx(b.value - a.value)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(20.0)[:, None]
    names = [str(i) for i in range(20)]
    assert bootstrap(values, names, seed=3) == bootstrap(values, names, seed=3)
    assert bootstrap(np.ones((5, 2)), list("aabbc"))[1].low == 1.0
