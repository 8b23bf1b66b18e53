from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.wire import Selection
from acemath_gateway.selection import best_of_n, majority, margin, select, weighted_vote


@dataclass(frozen=True)
class Item:
    index: int
    score: float | None
    answer_class: int | None


# Multiples of 1/8 in a small range: adding a constant is exact, so that a law about it is about the rule, not rounding.
scores = st.integers(-80, 80).map(lambda i: i / 8)
classes = st.none() | st.integers(0, 4)


@st.composite
def pools(draw: st.DrawFn, *, unscored: bool = True) -> list[Item]:
    size = draw(st.integers(1, 10))
    score = st.none() | scores if unscored else scores
    return [Item(i, draw(score), draw(classes)) for i in range(size)]


def scored_only(pool: list[Item]) -> bool:
    return any(item.score is not None for item in pool)


@given(pools(unscored=False), st.randoms(use_true_random=False), st.sampled_from(Selection))
def test_order_never_matters(pool: list[Item], rng: random.Random, selection: Selection) -> None:
    shuffled = pool[:]
    rng.shuffle(shuffled)
    assert select(selection, shuffled) == select(selection, pool)


@given(pools(), st.integers(-100, 100), st.sampled_from(Selection))
def test_adding_a_constant_to_every_score_changes_nothing(pool: list[Item], shift: int, selection: Selection) -> None:
    if not scored_only(pool) and selection is not Selection.MAJORITY:
        return
    moved = [replace(i, score=None if i.score is None else i.score + shift) for i in pool]
    assert select(selection, moved).index == select(selection, pool).index


@given(pools())
def test_best_of_n_is_the_maximum_with_the_lowest_index(pool: list[Item]) -> None:
    if not scored_only(pool):
        with pytest.raises(ValueError, match="scored"):
            best_of_n(pool)
        return
    best = best_of_n(pool)
    top = max(i.score for i in pool if i.score is not None)
    assert best.score == top
    assert best.index == min(i.index for i in pool if i.score == top)


@given(pools())
def test_majority_has_no_fewer_votes_than_any_other(pool: list[Item]) -> None:
    winner = majority(pool)
    votes = [i.answer_class for i in pool if i.answer_class is not None]
    if votes:
        assert votes.count(winner.answer_class) == max(votes.count(v) for v in votes)


@given(pools(), st.sampled_from([Selection.MAJORITY, Selection.WEIGHTED_VOTE]))
def test_no_answer_never_wins_a_vote_while_there_is_one(pool: list[Item], selection: Selection) -> None:
    if selection is Selection.WEIGHTED_VOTE and not scored_only(pool):
        return
    if any(i.answer_class is not None for i in pool):
        assert select(selection, pool).answer_class is not None


@given(pools(unscored=False))
def test_the_winner_is_the_best_of_its_class(pool: list[Item]) -> None:
    for choose in (majority, weighted_vote):
        winner = choose(pool)
        if winner.answer_class is not None:
            members = [i for i in pool if i.answer_class == winner.answer_class]
            assert winner == best_of_n(members)


@given(pools(unscored=False), st.permutations(range(5)))
def test_the_names_of_classes_do_not_matter(pool: list[Item], names: list[int]) -> None:
    renamed = [replace(i, answer_class=None if i.answer_class is None else names[i.answer_class]) for i in pool]
    for choose in (majority, weighted_vote):
        assert choose(renamed).index == choose(pool).index


@given(pools(unscored=False))
def test_raising_the_winners_score_keeps_it(pool: list[Item]) -> None:
    for choose in (best_of_n, weighted_vote):
        winner = choose(pool)
        raised = [replace(i, score=(i.score or 0.0) + 1) if i == winner else i for i in pool]
        assert choose(raised).index == winner.index


@given(st.integers(1, 8), scores)
def test_with_equal_scores_a_weighted_vote_is_a_majority(size: int, score: float) -> None:
    pool = [Item(i, score, i % 3) for i in range(size)]
    assert weighted_vote(pool) == majority(pool)


@given(pools(unscored=False))
def test_with_one_class_every_selection_agrees(pool: list[Item]) -> None:
    pool = [replace(i, answer_class=0) for i in pool]
    assert best_of_n(pool) == majority(pool) == weighted_vote(pool)


def test_many_weak_votes_lose_to_one_strong_one_and_win_when_close() -> None:
    strong = [Item(0, 5.0, 0), Item(1, 1.0, 1), Item(2, 1.0, 1)]
    close = [Item(0, 1.5, 0), Item(1, 1.0, 1), Item(2, 1.0, 1)]
    assert weighted_vote(strong).index == 0
    assert weighted_vote(close).index == 1
    assert majority(strong).index == 1


def test_ties_between_answers_go_to_the_higher_best_score_then_the_lower_index() -> None:
    assert majority([Item(0, 1.0, 0), Item(1, 2.0, 1)]).index == 1
    assert majority([Item(0, 2.0, 0), Item(1, 2.0, 1)]).index == 0
    assert majority([Item(1, None, 1), Item(0, None, 0)]).index == 0


def test_a_candidate_without_a_score_votes_in_a_majority_only() -> None:
    pool = [Item(0, None, 0), Item(1, None, 0), Item(2, -3.0, 1)]
    assert majority(pool).index == 0
    assert weighted_vote(pool).index == 2
    assert best_of_n(pool).index == 2


def test_identical_candidates_keep_their_own_scores() -> None:
    pool = [Item(0, -4.0, 0), Item(1, -4.0, 0)]
    assert best_of_n(pool).score == -4.0


def test_without_any_answer_the_best_score_decides() -> None:
    pool = [Item(0, None, None), Item(1, 0.5, None), Item(2, 0.7, None)]
    assert majority(pool).index == weighted_vote(pool).index == 2
    assert majority([Item(3, None, None), Item(1, None, None)]).index == 1


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError):
        majority([])
    with pytest.raises(ValueError):
        weighted_vote([Item(0, None, 0)])


def test_scores_far_apart_do_not_overflow() -> None:
    assert weighted_vote([Item(0, -1e300, 0), Item(1, 1e300, 1)]).index == 1


def test_margin() -> None:
    assert margin([Item(0, 3.0, None), Item(1, None, None), Item(2, 1.0, None)]) == 2.0
    assert margin([Item(0, 3.0, None)]) is None
