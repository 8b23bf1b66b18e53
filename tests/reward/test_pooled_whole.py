"""Live sessions of an engine that takes candidates whole: the port's promises, without an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_reward.pooled.whole import LiveBytes, WholeCell, WholeSession, whole_cells
from acemath_reward.ports import CandidateEnded, LiveBudgetExceeded, LiveLimits, PromptGroup, SequenceTooLong

PROMPT = (1, 2, 3)
ID_BYTES = 4


def session(total: int = 1000, one: int = 1000, max_tokens: int = 50) -> tuple[WholeSession, LiveBytes]:
    account = LiveBytes(LiveLimits(total * ID_BYTES, one * ID_BYTES))
    return WholeSession(PROMPT, max_tokens, account), account


def only(live: WholeSession) -> WholeCell:
    (due,) = live.due()
    assert isinstance(due.cell, WholeCell)
    return due.cell


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_candidate_in_pieces_is_the_cell_of_the_whole(pieces: list[list[int]]) -> None:
    live, account = session()
    for piece in pieces:
        assert live.due() == []
        live.extend(0, piece)
    live.finish(0)
    cell = only(live)
    whole = tuple(number for piece in pieces for number in piece)
    assert (cell.prompt, cell.own, cell.scored) == (PROMPT, whole, True)
    assert account.held == live.held_bytes == (len(PROMPT) + len(whole)) * ID_BYTES
    assert cell.wanted()
    cell.done()
    assert live.due() == [] and account.held == len(PROMPT) * ID_BYTES
    live.close()
    live.close()
    assert account.held == live.held_bytes == 0


def test_a_group_brings_its_prompt_once() -> None:
    cells = whole_cells(PromptGroup(PROMPT, ((4,), (5, 6), (7, 8, 9))))
    assert [cell.tokens for cell in cells] == [3 + 1, 2, 3]
    assert all(cell.wanted() for cell in cells)


def test_a_score_is_given_once() -> None:
    live, _ = session()
    live.extend(0, [7])
    live.finish(0)
    cell = only(live)
    cell.done()
    with pytest.raises(ValueError, match="scored before"):
        cell.wanted()


@pytest.mark.parametrize("way", ["drop", "close"])
def test_nobody_wants_what_was_dropped_or_closed(way: str) -> None:
    live, account = session()
    live.extend(0, [7, 8])
    live.finish(0)
    cell = only(live)
    live.drop(0) if way == "drop" else live.close()
    assert not cell.wanted()
    cell.done()
    live.drop(0)
    live.drop(99)
    assert account.held == (len(PROMPT) * ID_BYTES if way == "drop" else 0)


def test_an_ended_candidate_takes_no_more() -> None:
    live, _ = session()
    with pytest.raises(CandidateEnded):
        live.finish(0)
    live.extend(0, [7])
    live.finish(0)
    for again in (lambda: live.extend(0, [8]), lambda: live.finish(0)):
        with pytest.raises(CandidateEnded):
            again()
    live.close()
    with pytest.raises(CandidateEnded):
        live.extend(1, [7])


def test_what_does_not_fit_changes_nothing() -> None:
    live, account = session(total=10, one=8, max_tokens=50)
    live.extend(0, [1, 2])
    with pytest.raises(LiveBudgetExceeded):
        live.extend(0, [1, 2, 3, 4])
    assert live.held_bytes == account.held == 5 * ID_BYTES
    other = WholeSession((1, 2, 3, 4), 50, account)
    with pytest.raises(LiveBudgetExceeded):
        other.extend(0, [1, 2])
    with pytest.raises(LiveBudgetExceeded):
        WholeSession((1, 2), 50, account)
    assert account.held == 9 * ID_BYTES


def test_a_sequence_longer_than_the_model_is_refused() -> None:
    live, account = session(max_tokens=5)
    live.extend(0, [1, 2])
    with pytest.raises(SequenceTooLong, match="6 tokens; the model takes 5"):
        live.extend(0, [3])
    with pytest.raises(SequenceTooLong):
        WholeSession((1, 2, 3, 4, 5), 5, account)
    assert account.held == 5 * ID_BYTES
