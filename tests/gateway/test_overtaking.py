from __future__ import annotations

import random
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.wire import MAX_CANDIDATES
from acemath_gateway.overtaking import UNSEEN, overtakes, stays_ahead


@st.composite
def urns(draw: st.DrawFn, at_most: int = 5) -> tuple[list[int], int, int]:
    """Votes of a leader and of others, fewer each; candidates so far, some without an answer; how many are to come."""
    lead = draw(st.integers(1, 5))
    votes = [lead, *draw(st.lists(st.integers(1, lead - 1), max_size=3) if lead > 1 else st.just([]))]
    return votes, sum(votes) + draw(st.integers(0, 2)), draw(st.integers(0, at_most))


@cache
def kept(votes: tuple[int, ...], made: int, remaining: int) -> Fraction:
    """P(the first answer has the most in the end) + P(it shares that) / 2, by going through every course of the urn."""
    if not remaining:
        most = max(votes[1:], default=0)
        return Fraction(votes[0] > most) + Fraction(votes[0] == most, 2)
    balls = made + UNSEEN
    courses = [(v, (*votes[:i], v + 1, *votes[i + 1 :])) for i, v in enumerate(votes)]
    courses += [(UNSEEN, (*votes, 1)), (made - sum(votes), votes)]
    return sum((Fraction(w, balls) * kept(then, made + 1, remaining - 1) for w, then in courses if w), Fraction(0))


@cache
def passed(lead: int, votes: int, weight: int, made: int, remaining: int) -> Fraction:
    """What `overtakes` says, by going through every course of an urn with three kinds of balls."""
    if not remaining:
        return Fraction(votes > lead) + Fraction(votes == lead, 2)
    then, left = made + 1, remaining - 1
    return (
        lead * passed(lead + 1, votes, weight, then, left)
        + weight * passed(lead, votes + 1, weight + 1, then, left)
        + (made + UNSEEN - lead - weight) * passed(lead, votes, weight, then, left)
    ) / Fraction(made + UNSEEN)


@given(urns(at_most=9))
def test_a_rival_overtakes_as_often_as_in_the_urn(urn: tuple[list[int], int, int]) -> None:
    (lead, *rivals), made, remaining = urn
    for votes, weight in [*((v, v) for v in rivals), (0, UNSEEN)]:
        exact = float(passed(lead, votes, weight, made, remaining))
        assert overtakes(lead, votes, weight, made, remaining) == pytest.approx(exact, abs=1e-12)


@given(urns())
def test_a_leader_is_never_called_surer_than_in_the_urn(urn: tuple[list[int], int, int]) -> None:
    votes, made, remaining = urn
    exact = float(kept(tuple(votes), made, remaining))
    assert stays_ahead(votes, made, remaining) <= exact + 1e-12


@given(urns(at_most=12))
def test_only_a_lead_that_nothing_can_take_is_certain(urn: tuple[list[int], int, int]) -> None:
    votes, made, remaining = urn
    lead, second = (*sorted(votes, reverse=True), 0)[:2]
    assert (stays_ahead(votes, made, remaining) == 1.0) == (lead > second + remaining)


@given(urns(at_most=12))
def test_a_candidate_for_the_leader_makes_it_surer_than_one_for_nobody_and_one_for_a_rival_less(
    urn: tuple[list[int], int, int],
) -> None:
    votes, made, remaining = urn
    nobody = stays_ahead(votes, made + 1, remaining)
    assert stays_ahead([votes[0] + 1, *votes[1:]], made + 1, remaining) >= nobody - 1e-12
    for i in range(1, len(votes)):
        assert stays_ahead([*votes[:i], votes[i] + 1, *votes[i + 1 :]], made + 1, remaining) <= nobody + 1e-12


@given(urns(at_most=12))
def test_the_same_lead_is_surer_with_fewer_to_come(urn: tuple[list[int], int, int]) -> None:
    votes, made, remaining = urn
    # Of two more an even gap may be closed, of one more only an odd one: every second step is compared.
    assert stays_ahead(votes, made, remaining + 2) <= stays_ahead(votes, made, remaining) + 1e-12


@given(urns(at_most=30), st.randoms(use_true_random=False))
def test_answers_have_no_names(urn: tuple[list[int], int, int], shuffler: random.Random) -> None:
    votes, made, remaining = urn
    again = list(votes)
    shuffler.shuffle(again)
    assert stays_ahead(again, made, remaining) == pytest.approx(stays_ahead(votes, made, remaining), abs=1e-12)


def test_by_hand() -> None:
    # Two votes to none and one to come: a new answer has one vote at most.
    assert stays_ahead([2], 2, 1) == 1.0
    # One to none and one to come: a new answer comes with 1 / 2 and ties, which is half.
    assert stays_ahead([1], 1, 1) == pytest.approx(0.75)
    # Two to one, one to come: a tie with 1 / 4, and a new answer cannot reach two.
    assert stays_ahead([2, 1], 3, 1) == pytest.approx(1 - 1 / 8)


def test_nobody_leads_without_votes_or_at_a_tie() -> None:
    assert stays_ahead([], 4, 4) == 0.0
    assert stays_ahead([2, 2], 4, 1) == 0.0
    assert stays_ahead([1, 3, 3], 7, 0) == 0.0


@given(st.integers(1, MAX_CANDIDATES - 1), st.data())
def test_it_is_a_probability_whatever_the_votes(made: int, data: st.DataObject) -> None:
    votes: list[int] = []
    while made > sum(votes) and data.draw(st.booleans()):
        votes.append(data.draw(st.integers(1, made - sum(votes))))
    assert 0.0 <= stays_ahead(votes, made, MAX_CANDIDATES - made) <= 1.0
