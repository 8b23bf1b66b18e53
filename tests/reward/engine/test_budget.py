"""What sessions hold is bounded, named when it would be exceeded, and free again when they are done."""

from __future__ import annotations

from pathlib import Path

import pytest
from reward.engine.drawing import CELL, OWN, PROMPTS, alone, bounded, engine_of, ids, step

from acemath_reward.ports import CandidateEnded, LiveBudgetExceeded, PromptGroup, SequenceTooLong

TOKEN = 2 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, head width, float32


def test_a_session_that_would_hold_too_much_gets_a_named_error_and_goes_on(llama: Path) -> None:
    engine = bounded(llama, total=1000, session=90 + 40)
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[6])  # 33
    with pytest.raises(LiveBudgetExceeded, match="this session"):
        session.extend(1, ids(8, 1))
    assert session.held_bytes == engine.live_bytes == (90 + 33) * TOKEN
    session.finish(0)
    assert step(engine, [session]) == [{0: alone(llama, "float32")[4, 6]}]
    assert session.held_bytes == 90 * TOKEN, "a scored candidate holds nothing"
    session.extend(1, ids(40, 1))
    session.close()
    assert engine.live_bytes == session.held_bytes == 0


def test_all_sessions_together_are_bounded(llama: Path) -> None:
    engine = bounded(llama, total=100, session=90)
    first = engine.open(PROMPTS[4])
    with pytest.raises(LiveBudgetExceeded, match="all live sessions"):
        engine.open(ids(11, 1))
    first.close()
    engine.open(ids(11, 1)).close()
    assert engine.live_bytes == 0


def test_a_candidate_that_is_dropped_is_free_and_the_others_go_on(llama: Path) -> None:
    engine = bounded(llama, total=1000, session=1000)
    session = engine.open(PROMPTS[3])
    for candidate in (0, 1):
        session.extend(candidate, OWN[7])
    step(engine, [session])
    session.drop(0)
    session.drop(5)
    assert engine.live_bytes == (31 + 64) * TOKEN
    with pytest.raises(CandidateEnded):
        session.extend(0, (1,))
    session.finish(1)
    assert step(engine, [session]) == [{1: alone(llama, "float32")[3, 7]}]
    session.drop(1)
    assert engine.live_bytes == 31 * TOKEN
    session.close()


def test_cells_of_a_closed_session_are_skipped_in_a_pass_with_others(llama: Path) -> None:
    engine = bounded(llama, total=1000, session=1000)
    gone, stays = engine.open(PROMPTS[2]), engine.open(PROMPTS[2])
    for session in (gone, stays):
        session.extend(0, OWN[4])
        session.finish(0)
    due = [*gone.due(), *stays.due()]
    gone.close()
    values = engine.forward([part.cell for part in due])
    assert [value for value in values if value is not None] == [alone(llama, "float32")[2, 4]]
    assert gone.due() == [] and engine.forward([part.cell for part in due[:2]]) == [None, None]
    stays.close()
    gone.close()
    assert engine.live_bytes == 0


def test_what_a_session_keeps_is_what_it_says(llama: Path) -> None:
    engine = bounded(llama, total=1000, session=1000)
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[8])
    step(engine, [session])
    tracks = [session._prompt, session._candidates[0].track]
    kept = sum(part.untyped_storage().nbytes() for track in tracks if track for part in track.kept)
    assert kept == (90 + 96) * TOKEN, "six whole cells of the 100 tokens"
    assert session.held_bytes == (90 + 100) * TOKEN
    session.close()
    assert all(track.kept == () for track in tracks if track)


def test_too_long_is_refused_before_it_is_taken(llama: Path) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[4])
    session.extend(0, ids(230, 1))
    with pytest.raises(SequenceTooLong, match="321 tokens; the model takes 320"):
        session.extend(0, (1,))
    with pytest.raises(SequenceTooLong):
        engine.open(ids(320, 1))
    session.close()


def test_a_candidate_ends_once(llama: Path) -> None:
    session = engine_of(llama).open(PROMPTS[1])
    with pytest.raises(CandidateEnded, match="no tokens"):
        session.finish(0)
    session.extend(0, (1, 2))
    session.finish(0)
    for late in (lambda: session.finish(0), lambda: session.extend(0, (3,))):
        with pytest.raises(CandidateEnded, match="before"):
            late()
    session.close()
    with pytest.raises(CandidateEnded, match="closed"):
        session.extend(1, (1,))


def test_a_pass_that_cannot_be_is_refused_and_changes_nothing(llama: Path) -> None:
    engine, truth = engine_of(llama), alone(llama, "bfloat16")
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[8])
    due = [part.cell for part in session.due()]
    prompt, own = due[:6], due[6:]
    assert [cell.tokens for cell in prompt] == [CELL] * 5 + [10]
    for wrong in (own, prompt[1:], [*prompt, own[1]], [*prompt, own[0], own[0]]):
        with pytest.raises(ValueError):
            engine.forward(wrong)
    engine.forward(prompt)
    with pytest.raises(ValueError, match="does not follow"):
        engine.forward(prompt)
    session.finish(0)
    assert step(engine, [session]) == [{0: truth[4, 8]}]
    session.close()


def test_a_pass_that_fails_can_be_tried_again(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[8])
    session.finish(0)
    with monkeypatch.context() as patch:
        patch.setattr(engine._last, "put_keys_and_values", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(engine, [session])
    assert step(engine, [session]) == [{0: alone(llama, "bfloat16")[4, 8]}]
    assert engine.score([PromptGroup((), OWN[:1])])[0] == [alone(llama, "bfloat16")[0, 0]]
    session.close()
