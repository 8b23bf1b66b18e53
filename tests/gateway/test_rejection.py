"""Who is hopeless: the rule, by itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_gateway.rejection import RejectRules, hopeless

Wave = tuple[dict[int, float], set[int], RejectRules]
SCORES = st.floats(-20, 20) | st.sampled_from([0.0, 1.0])  # ties, too


@st.composite
def waves(draw: st.DrawFn) -> Wave:
    scores = draw(st.dictionaries(st.integers(0, 63), SCORES, min_size=1, max_size=16))
    unfinished = {index for index in scores if draw(st.booleans())}
    keep = draw(st.floats(0.01, 0.99))
    return scores, unfinished, RejectRules(keep=keep, at_least=draw(st.integers(1, 20)))


def best_first(scores: dict[int, float]) -> list[int]:
    """By brute force: who is beaten by fewer comes first."""

    def beaten_by(index: int) -> int:
        mine = scores[index]
        return sum(1 for other, score in scores.items() if score > mine or (score == mine and other < index))

    return sorted(scores, key=beaten_by)


@pytest.mark.parametrize(
    ("keep", "n", "kept"), [(0.5, 8, 4), (0.5, 7, 4), (0.5, 2, 1), (0.1, 30, 3), (0.25, 8, 2), (0.01, 4, 1)]
)
def test_how_many_are_kept(keep: float, n: int, kept: int) -> None:
    assert RejectRules(keep=keep).kept(n) == kept


@pytest.mark.parametrize(
    ("keep", "waves", "at_least", "may"),
    [
        (0.5, [2], 1, True),
        (0.5, [1], 1, False),
        (0.9, [9], 1, False),
        (0.9, [10], 1, True),
        (0.9, [4, 4, 8], 1, False),
        (0.5, [8], 7, True),
        (0.5, [8], 8, False),
        (0.5, [4, 1], 4, False),
        (0.5, [4, 4], 4, True),  # the second wave, when all of the first ended
    ],
)
def test_whether_any_could_be_stopped(keep: float, waves: list[int], at_least: int, may: bool) -> None:
    assert RejectRules(keep=keep, at_least=at_least).may_stop(waves) is may


def test_the_worst_half_is_stopped_and_ties_go_by_index() -> None:
    rules = RejectRules(keep=0.5)
    assert hopeless(rules, {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}, {0, 1, 2, 3}) == [0, 3]
    assert hopeless(rules, dict.fromkeys(range(4), 1.0), {0, 1, 2, 3}) == [2, 3]
    assert hopeless(rules, {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}, {2, 3}) == [3]  # what has ended has its rank, and stays


@given(waves())
def test_who_is_stopped_is_unfinished_and_not_among_the_kept(wave: Wave) -> None:
    scores, unfinished, rules = wave
    kept = max(1, min(len(scores), max(rules.at_least, math.ceil(rules.keep * len(scores) - 1e-9))))
    assert set(hopeless(rules, scores, unfinished)) == set(best_first(scores)[kept:]) & unfinished


@given(waves())
def test_enough_are_left_and_the_best_is_one_of_them(wave: Wave) -> None:
    scores, unfinished, rules = wave
    stopped = hopeless(rules, scores, unfinished)
    assert len(scores) - len(stopped) >= min(len(scores), rules.at_least)
    assert best_first(scores)[0] not in stopped


@given(waves(), st.floats(0.01, 0.99))
def test_to_keep_more_stops_nobody_else(wave: Wave, other: float) -> None:
    scores, unfinished, rules = wave
    less, more = (
        set(hopeless(RejectRules(keep=keep, at_least=rules.at_least), scores, unfinished))
        for keep in sorted((rules.keep, other))
    )
    assert more <= less


@given(waves())
def test_neither_the_order_nor_the_scale_of_the_scores_matters(wave: Wave) -> None:
    scores, unfinished, rules = wave
    ranks = {score: float(rank) for rank, score in enumerate(sorted(set(scores.values())))}
    turned = {index: ranks[scores[index]] for index in sorted(scores, reverse=True)}
    assert hopeless(rules, turned, unfinished) == hopeless(rules, scores, unfinished)
