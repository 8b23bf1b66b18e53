from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.calibration import Calibration
from acemath_core.wire import MAX_CANDIDATES, Selection, StopReason
from acemath_gateway.selection import select
from acemath_gateway.stopping import (
    FIRST_WAVE,
    StopRules,
    cannot_change,
    may_be_certain,
    settled,
    wave_sizes,
)

NO_BETS = StopRules(confidence=math.inf)
COUNTING = [Selection.MAJORITY, Selection.BEST_OF_MAJORITY]
BY_SCORE = [Selection.BEST_OF_N, Selection.WEIGHTED_VOTE, Selection.BEST_OF_MAJORITY]
SURE = Calibration(reward="r@s1", temperature=1.0, slope=1.0, intercept=0.0, problems=9)


@dataclass(frozen=True)
class Item:
    index: int
    score: float | None
    answer_class: int | None


def answers(*classes: int | None, score: float = 0.0) -> list[Item]:
    return [Item(i, score, one) for i, one in enumerate(classes)]


@st.composite
def futures(draw: st.DrawFn) -> tuple[list[Item], list[Item], int]:
    """Candidates so far, those of the ones to come that do not fail, and how many are to come."""
    item = st.tuples(st.none() | st.integers(-9, 9).map(float), st.none() | st.integers(0, 3))
    so_far, later = draw(st.lists(item, min_size=1, max_size=9)), draw(st.lists(item, max_size=6))
    made = [Item(i, *parts) for i, parts in enumerate([*so_far, *later])]
    return made[: len(so_far)], made[len(so_far) :], len(later) + draw(st.integers(0, 2))


@given(futures(), st.sampled_from(Selection))
def test_what_cannot_change_does_not(future: tuple[list[Item], list[Item], int], selection: Selection) -> None:
    so_far, later, remaining = future
    if settled(NO_BETS, selection, so_far, remaining) is StopReason.CANNOT_CHANGE:
        assert selection in COUNTING
        assert select(selection, so_far + later).answer_class == select(selection, so_far).answer_class


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 8))
def test_what_a_majority_could_still_change_is_not_settled(classes: list[int], remaining: int) -> None:
    so_far = answers(*classes)
    leader = select(Selection.MAJORITY, so_far).answer_class
    others = [c for c in classes if c != leader] or [4]
    rival = max(others, key=others.count)
    worst = so_far + [Item(len(so_far) + i, 1.0, rival) for i in range(remaining)]
    changes = select(Selection.MAJORITY, worst).answer_class != leader
    assert (settled(NO_BETS, Selection.MAJORITY, so_far, remaining) is None) == changes


@given(futures(), st.sampled_from(Selection))
def test_certainty_is_foreseen(future: tuple[list[Item], list[Item], int], selection: Selection) -> None:
    so_far, _, remaining = future
    if cannot_change(selection, so_far, remaining):
        assert may_be_certain(selection, len(so_far), remaining)


@pytest.mark.parametrize("selection", Selection)
def test_four_that_agree_settle_it_and_three_do_not(selection: Selection) -> None:
    assert settled(StopRules(), selection, answers(0, 0, 1), 13) is None
    assert settled(StopRules(), selection, answers(0, 0, 0, 0), 12) is StopReason.AGREEMENT
    assert settled(StopRules(), selection, answers(0, 0, 0, 1), 12) is None
    assert settled(StopRules(confidence=0.98), selection, answers(0, 0, 0, 0), 12) is None


@pytest.mark.parametrize("selection", Selection)
def test_near_the_end_a_smaller_lead_is_enough(selection: Selection) -> None:
    five_to_two = answers(0, 0, 0, 0, 0, 1, 1)
    assert settled(StopRules(), selection, five_to_two, 57) is None
    assert settled(StopRules(), selection, five_to_two, 5) is StopReason.AGREEMENT


@given(futures(), st.permutations(range(4)), st.sampled_from(Selection))
def test_answers_have_no_names(
    future: tuple[list[Item], list[Item], int], names: list[int], selection: Selection
) -> None:
    so_far, _, remaining = future
    renamed = [Item(c.index, c.score, None if c.answer_class is None else names[c.answer_class]) for c in so_far]
    rules = StopRules(confidence=0.7)
    assert settled(rules, selection, renamed, remaining) == settled(rules, selection, so_far, remaining)


@pytest.mark.parametrize("selection", [Selection.BEST_OF_N, Selection.WEIGHTED_VOTE])
def test_a_score_for_another_answer_keeps_agreement_from_settling_it(selection: Selection) -> None:
    contested = [*answers(0, 0, 0, 0, 0, 0), Item(6, 9.0, 1)]
    assert settled(StopRules(), selection, contested, 9) is None
    assert settled(StopRules(), Selection.MAJORITY, contested, 9) is StopReason.AGREEMENT


def test_candidates_without_an_answer_neither_agree_nor_lead() -> None:
    assert settled(StopRules(), Selection.MAJORITY, answers(None, None, None, None), 4) is None
    assert settled(StopRules(), Selection.BEST_OF_N, answers(None, None, None, None), 4) is None
    assert settled(StopRules(), Selection.MAJORITY, answers(None, 0, 0, 0, 0), 11) is StopReason.AGREEMENT


def test_without_any_score_only_a_majority_is_settled() -> None:
    unscored = [Item(i, None, 0) for i in range(5)]
    assert settled(StopRules(), Selection.MAJORITY, unscored, 3) is StopReason.CANNOT_CHANGE
    assert [settled(StopRules(), selection, unscored, 3) for selection in BY_SCORE] == [None] * 3


def test_a_calibrated_score_settles_what_is_chosen_by_score() -> None:
    rules, good = StopRules(calibration=SURE), [Item(0, 3.0, 0), Item(1, 1.0, 1)]
    assert settled(rules, Selection.BEST_OF_N, good, 14) is StopReason.SCORE
    assert settled(rules, Selection.MAJORITY, good, 14) is None
    assert settled(StopRules(), Selection.BEST_OF_N, good, 14) is None
    assert settled(rules, Selection.BEST_OF_N, [Item(0, 2.1, 0)], 14) is None  # sigmoid(2.1) = 0.891
    assert settled(rules, Selection.BEST_OF_N, [Item(0, 9.0, None)], 14) is None


def test_nothing_is_settled_before_the_caller_has_its_choices_nor_when_all_is_done() -> None:
    same = answers(*[0] * 8)
    assert settled(StopRules(at_least=9), Selection.MAJORITY, same, 8) is None
    assert settled(StopRules(at_least=8), Selection.MAJORITY, same, 8) is StopReason.AGREEMENT
    assert settled(StopRules(), Selection.MAJORITY, same, 0) is None
    assert settled(StopRules(), Selection.MAJORITY, [], 8) is None


@given(st.integers(1, MAX_CANDIDATES), st.integers(1, 16))
def test_waves_make_all_candidates_and_never_more_than_there_are(n: int, first: int) -> None:
    sizes = wave_sizes(n, first)
    assert sum(sizes) == n
    assert sizes[0] == min(first, n)
    assert all(1 <= size <= max(2, sum(sizes[:place]) // 3) for place, size in enumerate(sizes) if place)


def test_the_number_of_waves_is_bounded() -> None:
    assert wave_sizes(16) == [4, 2, 2, 2, 3, 3]
    assert wave_sizes(MAX_CANDIDATES) == [4, 2, 2, 2, 3, 4, 5, 7, 9, 12, 14]
    assert max(len(wave_sizes(n, FIRST_WAVE)) for n in range(1, MAX_CANDIDATES + 1)) == 11
