from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acemath_core.wire import Selection
from acemath_gateway.selection import best_of_majority, best_of_n, majority, margin, rivals, select, weighted_vote


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


VOTES = [Selection.MAJORITY, Selection.WEIGHTED_VOTE, Selection.BEST_OF_MAJORITY]


@given(pools(), st.sampled_from(VOTES))
def test_no_answer_never_wins_a_vote_while_there_is_one(pool: list[Item], selection: Selection) -> None:
    if selection is not Selection.MAJORITY and not scored_only(pool):
        return
    if any(i.answer_class is not None for i in pool):
        assert select(selection, pool).answer_class is not None


@given(pools(unscored=False))
def test_the_winner_is_the_best_of_its_class(pool: list[Item]) -> None:
    for choose in (majority, weighted_vote, best_of_majority):
        winner = choose(pool)
        if winner.answer_class is not None:
            members = [i for i in pool if i.answer_class == winner.answer_class]
            assert winner == best_of_n(members)


@given(pools(unscored=False), st.permutations(range(5)))
def test_the_names_of_classes_do_not_matter(pool: list[Item], names: list[int]) -> None:
    renamed = [replace(i, answer_class=None if i.answer_class is None else names[i.answer_class]) for i in pool]
    for choose in (majority, weighted_vote, best_of_majority):
        assert choose(renamed).index == choose(pool).index


@given(pools(unscored=False))
def test_raising_the_winners_score_keeps_it(pool: list[Item]) -> None:
    for choose in (best_of_n, weighted_vote, best_of_majority):
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
    assert best_of_n(pool) == majority(pool) == weighted_vote(pool) == best_of_majority(pool)


@given(pools(unscored=False))
@example([Item(0, 0.0, 1), Item(1, 0.0, 0), Item(2, 0.125, 0), Item(3, 0.125, 1)])
def test_a_gate_of_one_is_a_majority_and_a_gate_of_nothing_the_best_of_n_with_an_answer(pool: list[Item]) -> None:
    # Level in votes and in their best scores: one goes by the candidate's place, the other by the answer's first one.
    gated, commonest = best_of_majority(pool, gate=1.0), majority(pool)
    votes = Counter(i.answer_class for i in pool)
    assert gated.score == commonest.score and votes[gated.answer_class] == votes[commonest.answer_class]
    answered = [i for i in pool if i.answer_class is not None] or pool
    assert best_of_majority(pool, gate=0.0) == best_of_n(answered)


@given(pools())
def test_a_frequent_answer_has_its_share_or_is_the_commonest_that_could_be_chosen(pool: list[Item]) -> None:
    if not scored_only(pool):
        with pytest.raises(ValueError, match="scored"):
            best_of_majority(pool)
        return
    winner = best_of_majority(pool)
    votes = {c: sum(i.answer_class == c for i in pool) for c in {i.answer_class for i in pool} - {None}}
    could = {i.answer_class for i in pool if i.score is not None} - {None} or votes.keys()
    if winner.answer_class is not None:
        most = max(votes[c] for c in could)
        assert votes[winner.answer_class] >= min(len(pool) / 4, most)
        passed = [i for i in pool if i.answer_class in could and votes[i.answer_class] >= min(len(pool) / 4, most)]
        assert all((winner.score or 0) >= i.score for i in passed if i.score is not None)


def test_a_rare_answer_with_the_highest_score_does_not_pass_the_gate() -> None:
    rare = [Item(0, 9.0, 0), Item(1, 1.0, 1), Item(2, 2.0, 1), Item(3, 0.0, 2), Item(4, 3.0, 2), Item(5, None, None)]
    assert best_of_n(rare).index == 0
    assert best_of_majority(rare).index == 4
    assert best_of_majority(rare[:4]).index == 0  # one of four is a quarter


def test_an_answer_without_any_score_passes_the_gate_only_beside_its_like() -> None:
    unscored = [Item(0, None, 0), Item(1, None, 0), Item(2, -3.0, 1)]
    assert best_of_majority(unscored).index == 2
    assert best_of_majority([*unscored[:2], Item(2, -3.0, None)]).index == 0


@given(pools(), st.sampled_from(VOTES), st.sets(st.integers(0, 4), min_size=1))
def test_where_losers_that_were_one_answer_would_win_rivals_says_so(
    pool: list[Item], selection: Selection, group: set[int]
) -> None:
    if selection is not Selection.MAJORITY and not scored_only(pool):
        return
    winner = select(selection, pool)
    group &= {i.answer_class for i in pool if i.answer_class not in (None, winner.answer_class)}
    if winner.answer_class is None or not group:
        return
    one = min(group)
    joined = [replace(i, answer_class=one) if i.answer_class in group else i for i in pool]
    if select(selection, joined).answer_class != winner.answer_class:
        assert rivals(selection, pool, winner.answer_class)(group)


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
