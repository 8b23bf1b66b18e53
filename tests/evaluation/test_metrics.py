from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acemath_evaluation import curves
from acemath_evaluation.metrics import (
    METRICS,
    GradedCandidate,
    GradedProblem,
    auc,
    best_score,
    label,
    majority,
    pairwise_accuracy,
    values,
    weighted_vote,
)
from acemath_gateway import selection


def candidates(*rows: tuple[bool, float | None, int | None, int]) -> list[GradedCandidate]:
    return [GradedCandidate(*row) for row in rows]


def measured(rows: list[GradedCandidate]) -> dict[str, float]:
    return dict(zip(METRICS, values(rows, random.Random(0)), strict=True))


POOLS = st.lists(
    st.builds(
        GradedCandidate,
        correct=st.booleans(),
        score=st.one_of(st.none(), st.sampled_from([-2.0, 0.0, 0.5, 0.5, 3.0])),
        answer_class=st.one_of(st.none(), st.integers(0, 3)),
        length=st.integers(1, 5),
    ),
    min_size=1,
    max_size=8,
)


def test_by_hand() -> None:
    # answers: a wrong (twice), b right (twice), c wrong; the best score is b's, the longest is a's, the shortest c's
    rows = candidates((False, 1.0, 0, 9), (True, 2.0, 1, 5), (False, 0.0, 2, 3), (True, 1.5, 1, 6), (False, 1.9, 0, 20))
    got = measured(rows)
    assert got["pass@1"] == pytest.approx(0.4)
    assert got["majority"] == 1.0  # a and b have two each; b's best score is higher
    assert got["weighted"] == 1.0  # e^2 + e^1.5 > e^1 + e^1.9
    assert got["rm"] == 1.0
    assert got["pass@k"] == 1.0
    assert got["shortest"] == 0.0
    assert got["longest"] == 0.0
    assert abs(got["random"] - 0.4) < 0.2


def test_ties_take_the_first() -> None:
    rows = candidates((False, 1.0, 0, 4), (True, 1.0, 1, 4))
    assert [measured(rows)[name] for name in ("rm", "majority", "weighted", "shortest", "longest")] == [0.0] * 5
    assert [measured(rows[::-1])[name] for name in ("rm", "majority", "weighted", "shortest", "longest")] == [1.0] * 5


def test_without_answers_or_scores() -> None:
    rows = candidates((False, None, None, 1), (True, None, 0, 2), (False, 5.0, None, 3))
    got = measured(rows)
    assert got["rm"] == 0.0  # the only one with a score
    assert got["majority"] == 1.0  # the only one with an answer
    nothing = measured(candidates((False, None, None, 1)))
    assert set(nothing.values()) == {0.0}


def test_a_votes_winner_does_not_change_when_all_scores_move() -> None:
    rows = candidates((True, 700.0, 0, 1), (False, 701.0, 1, 1), (True, 700.6, 0, 1))
    assert measured(rows)["weighted"] == 1.0
    moved = [GradedCandidate(c.correct, (c.score or 0) - 1_500, c.answer_class, c.length) for c in rows]
    assert measured(moved)["weighted"] == 1.0


def _score(candidate: GradedCandidate) -> float:
    return -math.inf if candidate.score is None else candidate.score


@given(POOLS)
@example(candidates((False, None, 0, 1), (False, None, 1, 1), (False, -2.0, 1, 1), (True, -2.0, 0, 1)))
def test_against_brute_force(pool: list[GradedCandidate]) -> None:
    got = measured(pool)
    ranked = sorted(range(len(pool)), key=lambda i: (-_score(pool[i]), i))
    assert got["rm"] == pool[ranked[0]].correct
    counts = Counter(c.answer_class for c in pool if c.answer_class is not None)
    if counts:
        first = {pool[i].answer_class: i for i in reversed(range(len(pool)))}
        best = {pool[i].answer_class: _score(pool[i]) for i in reversed(ranked)}
        common = [answer for answer, votes in counts.items() if votes == max(counts.values())]
        winner = min(common, key=lambda answer: (-best[answer], first[answer]))
        assert got["majority"] == next(pool[i].correct for i in ranked if pool[i].answer_class == winner)
    assert got["pass@k"] == any(c.correct for c in pool)
    assert got["pass@k"] >= max(got["rm"], got["majority"], got["weighted"], got["pass@1"])


@dataclass(frozen=True)
class _Served:
    """A candidate as the gateway sees it."""

    index: int
    score: float | None
    answer_class: int | None


@given(POOLS)
def test_the_choices_are_the_gateways(pool: list[GradedCandidate]) -> None:
    served = [_Served(i, c.score, c.answer_class) for i, c in enumerate(pool)]
    assert majority(pool) is pool[selection.majority(served[::-1]).index]
    if any(c.score is not None for c in pool):
        assert best_score(pool) is pool[selection.best_of_n(served[::-1]).index]
        assert weighted_vote(pool) is pool[selection.weighted_vote(served[::-1]).index]


@given(POOLS)
def test_auc_against_all_pairs(pool: list[GradedCandidate]) -> None:
    scored = [c for c in pool if c.score is not None]
    pairs = [(a.score, b.score) for a in scored if a.correct for b in scored if not b.correct]
    if not pairs:
        assert auc(pool) is None
        return
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)  # type: ignore[operator]
    assert auc(pool) == pytest.approx(wins / len(pairs))


def test_pairwise_accuracy_is_within_problems() -> None:
    low = GradedProblem("a", "a", tuple(candidates((True, 1.0, 0, 1), (False, 0.0, 1, 1))))
    high = GradedProblem("b", "b", tuple(candidates((True, 11.0, 0, 1), (False, 10.0, 1, 1))))
    assert pairwise_accuracy([low, high]) == 1.0
    assert auc([*low.candidates, *high.candidates]) == pytest.approx(0.75)
    assert pairwise_accuracy([]) is None


def test_draws_of_k_agree_with_all_subsets() -> None:
    rng = random.Random(3)
    pools = [
        GradedProblem(
            str(i),
            str(i),
            tuple(
                GradedCandidate(rng.random() < 0.4, rng.gauss(0, 1), rng.randrange(3), rng.randrange(9))
                for _ in range(6)
            ),
        )
        for i in range(40)
    ]
    exact = dict.fromkeys(METRICS, 0.0)
    for pool in pools:
        subsets = [measured(list(s)) for s in itertools.combinations(pool.candidates, 3)]
        for name in METRICS:
            exact[name] += sum(s[name] for s in subsets) / len(subsets) / len(pools)
    got = curves.measure(pools, 3)
    for name in METRICS:
        assert got.metrics[name].value == pytest.approx(exact[name], abs=0.03)
    assert got.gains["pass@1"].value == pytest.approx(got.metrics["rm"].value - got.metrics["pass@1"].value)


def test_the_curve_ends_at_n_and_at_one_all_are_pass_at_1() -> None:
    pool = tuple(candidates(*((i % 3 == 0, float(i), i % 2, i) for i in range(6))))
    points = curves.curve([GradedProblem("a", "a", pool)], 6)
    assert [point.k for point in points] == [1, 2, 4, 6]
    one = {name: estimate.value for name, estimate in points[0].metrics.items()}
    assert max(one.values()) - min(one.values()) < 0.2
    assert points[-1].metrics["pass@k"].value == 1.0


def test_labels() -> None:
    assert [label(name, 8) for name in METRICS][:5] == ["pass@1", "majority@8", "weighted@8", "rm@8", "pass@8"]
