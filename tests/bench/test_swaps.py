"""The soak of swaps sees an answer that is not of one release; its checkpoints cannot be mistaken for one another."""

from __future__ import annotations

from typing import Any

import pytest

from bench.swaps.load import Release, mixed
from bench.swaps.report import quantiles

RELEASE = Release("r-1", "policy@s1", "reward@s1", "a", (0.5, 0.25, 0.125))


def answer(**changes: Any) -> dict[str, Any]:
    models = {"policy": "policy@s1", "reward": "reward@s1"}
    candidates = [{"text": "aaaa", "score": 0.25}, {"text": "aaaa", "score": 0.25}]
    whole = {"release": "r-1", "models": models, "n_scored": 2, "degraded": False, "degraded_reason": None}
    return whole | {"candidates": candidates} | changes


def test_an_answer_of_one_release_is_right() -> None:
    assert mixed(answer(), {"r-1": RELEASE}, 1, 2) is None
    assert mixed(answer(degraded=True, degraded_reason="truncated"), {"r-1": RELEASE}, 1, 2) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"release": "r-2"}, "never promoted"),
        ({"models": {"policy": "policy@s1", "reward": "reward@s2"}}, "is not"),
        ({"n_scored": 1, "degraded": True, "degraded_reason": "deadline"}, "1 of 2 scored, deadline"),
        ({"candidates": [{"text": "aaaa", "score": 0.25}, {"text": "bbbb", "score": 0.25}]}, "written"),
        ({"candidates": [{"text": "aaab", "score": 0.25}, {"text": "aaaa", "score": 0.25}]}, "written"),
        ({"candidates": [{"text": "aaaa", "score": 0.25}, {"text": "aaaa", "score": 0.5}]}, "scored"),
    ],
)
def test_an_answer_of_two_is_not(changes: dict[str, Any], why: str) -> None:
    found = mixed(answer(**changes), {"r-1": RELEASE}, 1, 2)
    assert found is not None and why in found


def test_quantiles_of_some_and_of_none() -> None:
    assert quantiles([3.0, 1.0, 2.0]) == {"median": 2.0, "p99": 3.0, "largest": 3.0}
    assert quantiles([]) == {}
