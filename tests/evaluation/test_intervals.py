from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from acemath_evaluation.intervals import bootstrap

STUDIES = 1_500
SIZE = 15
"""Problems of a cluster."""


def _coverage(values: NDArray[np.float64], true: float, clusters: int) -> float:
    """How often the interval holds the true mean; every column is a made-up study."""
    names = [str(i * clusters // len(values)) for i in range(len(values))]
    estimates = bootstrap(values, names, seed=1, resamples=999)
    return float(np.mean([e.low <= true <= e.high for e in estimates]))


def _metric(rng: np.random.Generator, clusters: int, right: float, wrong: float) -> NDArray[np.float64]:
    """Right and wrong answers [problems, studies]; the probability differs from cluster to cluster, as a beta does."""
    spread = np.repeat(rng.beta(right, wrong, size=(clusters, STUDIES)), SIZE, axis=0)
    return rng.binomial(1, spread).astype(float)


def _difference(rng: np.random.Generator, clusters: int, gain: float, loss: float) -> NDArray[np.float64]:
    """Paired differences -1, 0, 1 [problems, studies] whose probabilities differ from cluster to cluster."""
    spread = rng.dirichlet([5 * gain, 5 * loss, 5 * (1 - gain - loss)], size=(clusters, STUDIES))
    up, down = (np.repeat(spread[..., i], SIZE, axis=0) for i in (0, 1))
    drawn = rng.random(up.shape)
    return (drawn < up).astype(float) - (drawn > 1 - down)


@pytest.mark.parametrize("clusters", [16, 20])
@pytest.mark.parametrize(("right", "wrong"), [(0.6, 1.4), (0.3, 1.7), (4.0, 1.0)])
def test_coverage_of_a_metric_with_few_clusters(clusters: int, right: float, wrong: float) -> None:
    values = _metric(np.random.default_rng(7), clusters, right, wrong)
    assert 0.93 <= _coverage(values, right / (right + wrong), clusters) <= 0.985


@pytest.mark.parametrize("clusters", [16, 20])
@pytest.mark.parametrize(("gain", "loss"), [(0.08, 0.04), (0.15, 0.10)])
def test_coverage_of_a_difference_with_few_clusters(clusters: int, gain: float, loss: float) -> None:
    values = _difference(np.random.default_rng(8), clusters, gain, loss)
    assert 0.93 <= _coverage(values, gain - loss, clusters) <= 0.985


def test_templates_need_the_cluster_bootstrap() -> None:
    values = _metric(np.random.default_rng(7), 20, 0.6, 1.4)
    assert _coverage(values, 0.3, len(values)) < 0.75


def test_no_interval_leaves_the_limits() -> None:
    values = np.zeros((30, 3))
    values[:10, 0] = 1.0
    values[:, 1] = 1.0
    names = [str(i // 10) for i in range(30)]  # of three clusters, one is all right and two all wrong
    some, all_right, none = bootstrap(values, names, limits=([0.0] * 3, [1.0] * 3))
    assert (some.low, some.high) == (0.0, 1.0)  # three such clusters say nothing
    assert (all_right.low, all_right.high, none.low, none.high) == (1.0, 1.0, 0.0, 0.0)
    (single,) = bootstrap(values[:10, :1], ["a"] * 10, limits=([0.0], [1.0]))
    assert (single.value, single.low, single.high) == (1.0, 0.0, 1.0)


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
