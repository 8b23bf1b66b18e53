from __future__ import annotations

import pytest

from bench.reward.stats import differences, kendall_tau, paired_ratios, spread


def test_the_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert spread([]) == {}


def test_ratios_are_of_one_round_and_leave_out_rounds_that_one_did_not_take_part_in() -> None:
    peer = {1: 10.0, 2: 99.0, 3: 30.0}
    ours = {1: 5.0, 3: 10.0, 4: 1.0}
    assert paired_ratios(peer, ours) == {"median": 2.5, "min": 2.0, "max": 3.0, "n": 2}


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], 1 / 3),
        ([1.0, 1.0], [1.0, 2.0], 0.0),
        ([1.0], [2.0], 1.0),
    ],
)
def test_kendall_tau(a: list[float], b: list[float], tau: float) -> None:
    assert kendall_tau(a, b) == pytest.approx(tau)


def test_differences_say_how_far_and_whether_the_best_is_the_same() -> None:
    found = differences([[1.0, 2.0], [5.0, 4.0], [7.0]], [[1.5, 2.0], [4.0, 5.0], [7.0]])
    assert found["largest_difference"] == 1.0
    assert found["mean_difference"] == pytest.approx(0.5)
    assert (found["same_best"], found["problems"]) == (1, 2)
    assert found["kendall_tau"] == 0.0
