"""`ports.LiveSession`: one suite for every implementation, the double among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from reward.engine.drawing import bounded, ids
from reward.models import ArithmeticModel

from acemath_reward.pooled.whole import LiveBytes, WholeCell, WholeSession
from acemath_reward.ports import (
    CandidateEnded,
    Cell,
    DueCell,
    LiveLimits,
    LiveSession,
    PeekPending,
    SequenceTooLong,
    TokenIds,
)

PROMPT, OWN = ids(20, 1), ids(100, 2)
MAX_TOKENS = 320


@dataclass
class Engine:
    """What opens sessions and computes their cells, and what a whole candidate is worth."""

    open: Callable[[TokenIds], LiveSession]
    forward: Callable[[Sequence[Cell]], Sequence[float | None]]
    worth: Callable[[TokenIds], float]
    held: Callable[[], int]


def of_the_engine(llama: Path) -> Engine:
    engine = bounded(llama, total=2000, session=2000)

    def worth(own: TokenIds) -> float:
        cells = engine.open(PROMPT)
        cells.extend(0, own)
        cells.finish(0)
        (value,) = [v for v in engine.forward([part.cell for part in cells.due()]) if v is not None]
        cells.close()
        return value

    return Engine(engine.open, engine.forward, worth, lambda: engine.live_bytes)


def of_whole_candidates(_: Path) -> Engine:
    account = LiveBytes(LiveLimits())

    def worth(own: TokenIds) -> float:
        return float(sum((*PROMPT, *own)))

    def forward(cells: Sequence[Cell]) -> list[float | None]:
        given = [cell for cell in cells if isinstance(cell, WholeCell)]
        values = [worth(cell.own) if cell.wanted() else None for cell in given]
        for cell in given:
            cell.done()
        return values

    return Engine(lambda prompt: WholeSession(prompt, MAX_TOKENS, account), forward, worth, lambda: account.held)


def of_the_double(_: Path) -> Engine:
    model = ArithmeticModel(MAX_TOKENS)
    return Engine(model.open, model.forward, lambda own: model.answer(PROMPT, own), lambda: model.live_bytes)


@pytest.fixture(params=[of_the_engine, of_whole_candidates, of_the_double], ids=["torch", "vllm", "double"])
def engine(request: pytest.FixtureRequest, llama: Path) -> Engine:
    made: Engine = request.param(llama)
    return made


@pytest.fixture
def session(engine: Engine) -> LiveSession:
    return engine.open(PROMPT)


def compute(engine: Engine, session: LiveSession) -> list[tuple[int | None, bool, float]]:
    """The scores of all that is due, and of what that makes due: candidate, whether it is a partial one, number."""
    found = []
    while due := session.due():
        values = engine.forward([part.cell for part in due])
        found += [(p.candidate, p.peek, v) for p, v in zip(due, values, strict=True) if v is not None]
    return found


def peeks(due: Sequence[DueCell]) -> list[DueCell]:
    return [part for part in due if part.peek]


@pytest.mark.parametrize("length", [0, 1, 16, 17, 40])
@pytest.mark.parametrize("closing", [(7,), (7,) * 20])
def test_a_peek_is_worth_what_the_whole_is_and_changes_nothing(
    engine: Engine, session: LiveSession, length: int, closing: TokenIds
) -> None:
    if length:
        session.extend(0, OWN[:length])
    rows = session.peek(0, closing)
    session.extend(0, OWN[length:50])
    assert compute(engine, session) == [(0, True, engine.worth((*OWN[:length], *closing)))]
    assert len(closing) <= rows <= len(PROMPT) + length + len(closing)
    session.peek(0, closing)
    assert compute(engine, session) == [(0, True, engine.worth((*OWN[:50], *closing)))]
    session.extend(0, OWN[50:])
    session.finish(0)
    assert compute(engine, session) == [(0, False, engine.worth(OWN))]


def test_peeks_of_several_candidates_are_apart(engine: Engine, session: LiveSession) -> None:
    for candidate in (0, 1):
        session.extend(candidate, OWN[: 30 + candidate])
        session.peek(candidate, (5 + candidate,))
    session.finish(1)
    assert sorted(compute(engine, session)) == [
        (0, True, engine.worth((*OWN[:30], 5))),
        (1, False, engine.worth(OWN[:31])),
    ], "the one that ended has its score, and no partial one"


def test_one_at_a_time(engine: Engine, session: LiveSession) -> None:
    session.extend(0, OWN[:5])
    session.peek(0, (1,))
    with pytest.raises(PeekPending):
        session.peek(0, (2,))
    assert compute(engine, session) == [(0, True, engine.worth((*OWN[:5], 1)))]
    session.peek(0, (2,))
    assert compute(engine, session) == [(0, True, engine.worth((*OWN[:5], 2)))]


def test_what_cannot_be_peeked_at(engine: Engine, session: LiveSession) -> None:
    held = engine.held()
    with pytest.raises(CandidateEnded):
        session.peek(0, ())
    session.extend(0, OWN)
    with pytest.raises(SequenceTooLong):
        session.peek(0, ids(MAX_TOKENS - len(PROMPT) - len(OWN) + 1, 3))
    assert peeks(session.due()) == []
    session.finish(0)
    with pytest.raises(CandidateEnded):
        session.peek(0, (1,))
    session.extend(1, OWN)
    session.drop(1)
    with pytest.raises(CandidateEnded):
        session.peek(1, (1,))
    session.close()
    with pytest.raises(CandidateEnded):
        session.peek(2, (1,))
    assert engine.held() <= held


@pytest.mark.parametrize("way", ["drop", "finish", "close"])
def test_a_peek_goes_with_its_candidate(engine: Engine, session: LiveSession, way: str) -> None:
    session.extend(0, OWN[:10])
    before = engine.held()
    session.peek(0, ids(40, 4))
    {"drop": lambda: session.drop(0), "finish": lambda: session.finish(0), "close": session.close}[way]()
    assert peeks(session.due()) == []
    assert engine.held() == before if way == "finish" else engine.held() < before
    session.close()
    assert engine.held() == 0
