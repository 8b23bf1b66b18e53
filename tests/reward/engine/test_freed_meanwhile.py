"""A candidate, a peek or a session is given up by another thread while a pass with a part of it is laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reward.engine.drawing import OWN, PROMPTS, alone, engine_of

from acemath_reward.engine import packing
from acemath_reward.engine.live import GridSession

PROMPT, LONG, OTHER = 3, 9, 7


@pytest.mark.parametrize("place", ["_places", "_run"])
@pytest.mark.parametrize(
    "give_up",
    [
        lambda session: session.finish(0),
        lambda session: session.drop(0),
        lambda session: session.close(),
    ],
    ids=["the peek, by the end", "the candidate", "the session"],
)
def test_the_others_of_the_pass_get_their_scores(
    llama: Path, monkeypatch: pytest.MonkeyPatch, place: str, give_up: Callable[[GridSession], None]
) -> None:
    engine = engine_of(llama)
    session, other = engine.open(PROMPTS[PROMPT]), engine.open(PROMPTS[PROMPT])
    session.extend(0, OWN[LONG][:120])
    engine.forward([due.cell for due in session.due()])
    session.peek(0, OWN[2])
    session.extend(0, OWN[LONG][120:140])
    other.extend(0, OWN[OTHER])
    other.finish(0)
    due = [*session.due(), *other.due()]
    assert [part.peek for part in session.due()] == [False, True, True], "both are under way"
    before = getattr(packing, place)

    def giving_up_first(*given: Any) -> Any:
        monkeypatch.setattr(packing, place, before)
        give_up(session)
        return before(*given)

    monkeypatch.setattr(packing, place, giving_up_first)
    scores = engine.forward([part.cell for part in due])
    assert scores[-1] == alone(llama, "bfloat16")[PROMPT, OTHER]
    session.close()
    other.close()
    assert engine.live_bytes == 0
