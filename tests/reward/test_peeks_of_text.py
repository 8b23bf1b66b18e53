"""Random texts in random pieces with random peeks, on the real tokenizer and engine: the bits of one-piece scores."""

from __future__ import annotations

import itertools
from functools import cache, partial
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reward.engine.drawing import engine_of
from reward.live_client import MESSAGES

from acemath_core.wire import ScoreRequest
from acemath_reward.encoding import Vocabulary, encode
from acemath_reward.engine.live import GridSession
from acemath_reward.engine.model import RewardEngine
from acemath_reward.live.frames import Open, Piece
from acemath_reward.live.growing import Ending, GrowingCandidate
from acemath_reward.live.service import _context
from acemath_reward.ports import PromptGroup
from acemath_reward.versions import load

ALPHABET = "  \n\n\t.,'aAé\u0301xto73+\\{}🙂中"
texts = st.text(ALPHABET, max_size=90)


@cache
def loaded(directory: Path) -> tuple[RewardEngine, Vocabulary]:
    engine = engine_of(directory)
    return engine, load(directory, "r@1", lambda _: engine, 2048)[1]


@cache
def posted(directory: Path, text: str) -> tuple[float, int]:
    """Score and tokens of a text that comes whole."""
    engine, vocabulary = loaded(directory)
    request = ScoreRequest.model_validate({"messages": MESSAGES, "candidates": [text]})
    (sequence,) = encode(request, vocabulary).sequences
    return engine.score([PromptGroup(sequence.prompt, (sequence.own,))])[0][0], sequence.tokens


class Writing:
    """One candidate as a live connection hands it over, without the connection."""

    def __init__(self, directory: Path) -> None:
        self.engine, vocabulary = loaded(directory)
        opening = Open.model_validate({"type": "open", "messages": MESSAGES})
        self._context = _context(opening, vocabulary)
        self._sessions: dict[int, GridSession] = {}
        self.growing: GrowingCandidate | None = None

    def session(self, at: int) -> GridSession:
        if at not in self._sessions:
            self._sessions[at] = self.engine.open(self._context.prompt[:at])
        return self._sessions[at]

    def write(self, text: str) -> None:
        piece = Piece(type="piece", index=0, text=text)
        self.growing = self.growing or GrowingCandidate(self._context, piece, 1000)
        ids = self.growing.add(piece)
        if self.growing.cut is not None and ids:
            self.session(self.growing.cut).extend(0, ids)

    def peek(self) -> tuple[float, int]:
        assert self.growing is not None
        ending = self.growing.ending()
        self.session(ending.cut).peek(0, ending.ids)
        return self._computed(ending)

    def end(self) -> tuple[float, int]:
        assert self.growing is not None
        ending = self.growing.end(0)
        self.session(ending.cut).extend(0, ending.ids)
        self.session(ending.cut).finish(0)
        return self._computed(ending)

    def _computed(self, ending: Ending) -> tuple[float, int]:
        session, values = self.session(ending.cut), list[float | None]()
        while due := session.due():
            values += self.engine.forward([part.cell for part in due])
        (score,) = (value for value in values if value is not None)
        return score, ending.tokens

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, marks=st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=8))
@example(text="\n\n", marks=[(0, True), (1, True), (2, True)])
@example(text="Tom has \\boxed{7}.\n Tom", marks=[(at, True) for at in range(22)])
def test_partials_and_scores_have_the_bits_of_whole_texts(
    llama: Path, text: str, marks: list[tuple[int, bool]]
) -> None:
    writing, peeks = Writing(llama), {min(place, len(text)) for place, peek in marks if peek}
    places = sorted({0, len(text), *(min(place, len(text)) for place, _ in marks)})
    score = partial(posted, llama)
    for start, stop in itertools.pairwise([0, *places]):
        writing.write(text[start:stop])
        if stop in peeks:
            assert writing.peek() == score(text[:stop])
    assert writing.end() == score(text)
    writing.close()
    assert writing.engine.live_bytes == 0
