"""A partial score has the bits of a candidate that ended there, and leaves no trace on the one that goes on."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reward.engine.drawing import CELL, OWN, PROMPTS, alone, bounded, engine_of, ids, step

from acemath_reward.engine.live import GridSession
from acemath_reward.ports import Cell, LiveBudgetExceeded, PeekPending, PromptGroup, TokenIds

TOKEN = 2 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, head width, float32
TAILS = tuple(ids(length, 500 + length) for length in (0, 1, 3, 16, 40))


@cache
def worth(directory: Path, prompt: TokenIds, own: TokenIds) -> float:
    return engine_of(directory).score([PromptGroup(prompt, (own,))])[0][0]


class Peeker:
    """A candidate that is written in random pieces and peeked at; what its scores should be, and what they are."""

    def __init__(self, session: GridSession, index: int, own: TokenIds, draw: random.Random) -> None:
        self.session, self.index, self.own, self._draw = session, index, own, draw
        self.asked: TokenIds | None = None
        self.partials: list[tuple[TokenIds, float]] = []
        self.score: float | None = None
        self.given, self.ended = 0, False

    def go_on(self) -> None:
        """One thing that a writer does."""
        tail = self._draw.choice(TAILS)
        if self.asked is None and self.given + len(tail) > 0 and not self.ended and self._draw.random() < 0.5:
            self.asked = self.own[: self.given] + tail
            self.session.peek(self.index, tail)
        elif self.given < len(self.own):
            more = self._draw.randint(1, 30)
            self.session.extend(self.index, self.own[self.given : self.given + more])
            self.given += more
        elif not self.ended:
            self.session.finish(self.index)
            self.asked, self.ended = None, True

    def take(self, value: float, peek: bool) -> None:
        if not peek:
            self.score = value
            return
        assert self.asked is not None
        self.partials.append((self.asked, value))
        self.asked = None


def some_of(draw: random.Random, session: GridSession) -> list[tuple[int | None, bool, Cell]]:
    """All of the prompt, and of each candidate's and each peek's cells some beginning."""
    due = [(part.candidate, part.peek, part.cell) for part in session.due()]
    chosen = [entry for entry in due if entry[0] is None]
    for key in dict.fromkeys(entry[:2] for entry in due if entry[0] is not None):
        of_it = [entry for entry in due if entry[:2] == key]
        chosen += of_it[: draw.randint(0, len(of_it))]
    return chosen


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.integers(0, len(PROMPTS) - 1),
    owns=st.lists(st.integers(0, len(OWN) - 1), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_peeks_have_the_bits_of_candidates_that_end_there(
    kind: str, request: pytest.FixtureRequest, prompt: int, owns: list[int], seed: int
) -> None:
    draw = random.Random(seed)  # order and timing: too many small choices to be drawn one by one
    directory: Path = request.getfixturevalue(kind)
    engine = engine_of(directory)
    session = engine.open(PROMPTS[prompt])
    writers = [Peeker(session, index, OWN[own], draw) for index, own in enumerate(owns)]
    while any(writer.score is None for writer in writers):
        for writer in writers:
            for _ in range(draw.randint(0, 3)):
                writer.go_on()
        chosen = some_of(draw, session)
        for (index, peek, cell), value in zip(chosen, engine.forward([c for *_, c in chosen]), strict=True):
            assert (value is not None) == cell.scored
            if index is not None and value is not None:
                writers[index].take(value, peek)
    for writer in writers:
        assert writer.score == worth(directory, PROMPTS[prompt], writer.own)
        for asked, partial in writer.partials:
            assert partial == worth(directory, PROMPTS[prompt], asked)
    session.close()
    assert engine.live_bytes == 0


def test_a_peek_costs_what_is_not_in_a_whole_cell_and_shares_the_rest(llama: Path) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[9][: 3 * CELL + 5])
    step(engine, [session])
    before = engine.live_bytes
    assert session.peek(0, (7, 8)) == 5 + 2
    (due,) = session.due()
    assert (due.candidate, due.peek, due.cell.tokens, due.cell.scored) == (0, True, 7, True)
    assert engine.live_bytes == before, "one cell keeps nothing"
    own, fork = session._candidates[0].track, session._forks[0].track
    assert [part.data_ptr() for part in fork.kept] == [part.data_ptr() for part in own.kept] != []
    assert step(engine, [session]) == [{0: worth(llama, PROMPTS[4], (*OWN[9][: 3 * CELL + 5], 7, 8))}]
    assert session.due() == [] and fork.kept == () and engine.live_bytes == before
    session.close()


def test_a_candidate_that_went_on_shares_its_beginning_only(llama: Path) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[2])
    session.extend(0, OWN[9][: 2 * CELL + 1])
    session.peek(0, (9,))
    session.extend(0, OWN[9][2 * CELL + 1 :])
    own = [part.cell for part in session.due()]
    assert [part.peek for part in session.due()] == [False] * len(own), "the candidate's whole cells come first"
    engine.forward(own)
    assert step(engine, [session]) == [{0: worth(llama, PROMPTS[2], (*OWN[9][: 2 * CELL + 1], 9))}]
    session.finish(0)
    assert step(engine, [session]) == [{0: alone(llama, "bfloat16")[2, 9]}]
    session.close()


def test_what_a_long_peek_keeps_between_its_cells_is_counted_and_freed(llama: Path) -> None:
    engine = bounded(llama, total=16 + 5 + 32, session=1000)
    session = engine.open(PROMPTS[2])
    session.extend(0, OWN[8][:5])
    with pytest.raises(LiveBudgetExceeded, match="all live sessions"):
        session.peek(0, ids(3 * CELL + 10, 1))
    session.peek(0, ids(2 * CELL, 1))  # two whole cells, and one that keeps nothing
    assert engine.live_bytes == (16 + 5 + 32) * TOKEN
    prompt, first, *rest = session.due()
    engine.forward([prompt.cell, first.cell])
    assert [part.cell.tokens for part in session.due()] == [part.cell.tokens for part in rest] == [CELL, 5]
    (found,) = step(engine, [session])
    assert found == {0: engine.score([PromptGroup(PROMPTS[2], ((*OWN[8][:5], *ids(2 * CELL, 1)),))])[0][0]}
    assert engine.live_bytes == (16 + 5) * TOKEN
    session.close()
    assert engine.live_bytes == 0


@pytest.mark.parametrize("way", ["drop", "finish", "close"])
def test_nobody_computes_a_peek_whose_candidate_is_gone(llama: Path, way: str) -> None:
    engine = bounded(llama, total=1000, session=1000)
    session = engine.open(PROMPTS[2])
    session.extend(0, OWN[8][:5])
    session.peek(0, ids(2 * CELL, 1))
    prompt, *due = session.due()
    {"drop": lambda: session.drop(0), "finish": lambda: session.finish(0), "close": session.close}[way]()
    assert engine.forward([prompt.cell, *(part.cell for part in due)]) == [None] * 4
    assert [part.peek for part in session.due()] == ([False] if way == "finish" else [])
    assert engine.live_bytes == {"drop": 16, "finish": 16 + 5, "close": 0}[way] * TOKEN
    session.close()
    assert engine.live_bytes == 0


def test_a_peek_that_fails_can_be_tried_again(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[4])
    session.extend(0, OWN[8])
    step(engine, [session])
    session.peek(0, (3,))
    with monkeypatch.context() as patch:
        patch.setattr(engine._last, "put_keys_and_values", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(engine, [session])
    with pytest.raises(PeekPending):
        session.peek(0, (3,))
    assert step(engine, [session]) == [{0: worth(llama, PROMPTS[4], (*OWN[8], 3))}]
    session.peek(0, ())
    assert step(engine, [session]) == [{0: alone(llama, "bfloat16")[4, 8]}], "and again, in the same place"
    session.close()


def test_peeks_ride_in_a_pass_with_everything_else(llama: Path) -> None:
    engine = engine_of(llama)
    sessions = [engine.open(PROMPTS[p]) for p in (1, 1, 4)]
    for session in sessions:
        session.extend(0, OWN[6])
        session.extend(1, OWN[7])
    step(engine, sessions)
    for session in sessions:
        session.peek(0, (5,))
        session.finish(1)
    mates = engine.plan(PromptGroup(PROMPTS[3], OWN[:3]))
    due = [part for session in sessions for part in session.due()]
    values = engine.forward([*mates, *(part.cell for part in due)])[len(mates) :]
    expected = [
        value for p in (1, 1, 4) for value in (alone(llama, "bfloat16")[p, 7], worth(llama, PROMPTS[p], (*OWN[6], 5)))
    ]
    assert [value for value in values if value is not None] == expected
    for session in sessions:
        session.close()
