"""Cells and live sessions of an engine that takes a candidate only as a whole.

A live candidate costs nothing until it ends, or until somebody peeks; then all of it is one cell. So a service with
such an engine speaks the same protocols, without what they gain.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from acemath_reward.ports import (
    CandidateEnded,
    DueCell,
    LiveBudgetExceeded,
    LiveLimits,
    PeekPending,
    PromptGroup,
    SequenceTooLong,
    TokenIds,
)

_ID_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class WholeCell:
    """A candidate with its prompt (`ports.Cell`).

    Attributes:
        prompt: ids before the candidate's.
        own: the candidate's.
        tokens: rows that the engine computes for it, the prompt's if no other cell of its group brings them.
        asked: the question of a live session that it answers.
    """

    prompt: TokenIds
    own: TokenIds
    tokens: int
    asked: tuple[WholeSession, _Question] | None = field(default=None, repr=False)

    @property
    def scored(self) -> bool:
        """Always."""
        return True

    @property
    def ids(self) -> TokenIds:
        """The whole sequence."""
        return self.prompt + self.own

    def wanted(self) -> bool:
        """Whether somebody wants the score.

        Raises:
            ValueError: it was given before.
        """
        return self.asked is None or self.asked[0].wants(self.asked[1])

    def done(self) -> None:
        """The score is there: free what was held for it."""
        if self.asked is not None:
            self.asked[0].computed(self.asked[1])


def whole_cells(group: PromptGroup) -> list[WholeCell]:
    """A cell for each candidate; the first one brings the prompt."""
    brought = [len(group.prompt)] + [0] * (len(group.candidates) - 1)
    pairs = zip(group.candidates, brought, strict=True)
    return [WholeCell(group.prompt, own, len(own) + prompt) for own, prompt in pairs]


class LiveBytes:
    """Bytes of ids that all live sessions of an engine hold.

    Args:
        limits: of all, and of one.
    """

    def __init__(self, limits: LiveLimits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self.held = 0

    def take(self, ids: int, by_session: int) -> None:
        """Count `ids` more for a session that holds `by_session` bytes.

        Raises:
            LiveBudgetExceeded: they do not fit; nothing was counted.
        """
        more = ids * _ID_BYTES
        with self._lock:
            if by_session + more > self._limits.session_bytes or self.held + more > self._limits.total_bytes:
                raise LiveBudgetExceeded(f"{ids} more tokens do not fit into the bytes for live candidates")
            self.held += more

    def give(self, ids: int) -> None:
        """Count `ids` less."""
        with self._lock:
            self.held -= ids * _ID_BYTES


class _State(Enum):
    GROWING = "growing"
    ASKED = "asked"
    SCORED = "scored"
    DROPPED = "dropped"


@dataclass(slots=True, eq=False)
class _Question:
    """What a candidate is worth, or were worth if it ended here.

    Attributes:
        ids: of the candidate; held until the question is answered.
        state: how far it is.
    """

    ids: list[int] = field(default_factory=list)
    state: _State = _State.GROWING


class WholeSession:
    """One prompt and its growing candidates (`ports.LiveSession`).

    Args:
        prompt: shared ids; may be empty.
        max_tokens: of prompt and candidate together.
        account: counts what is held.

    Raises:
        LiveBudgetExceeded: the prompt does not fit.
        SequenceTooLong: the prompt leaves no room.
    """

    def __init__(self, prompt: TokenIds, max_tokens: int, account: LiveBytes) -> None:
        self._prompt, self._max_tokens, self._bytes = prompt, max_tokens, account
        self._lock, self._closed, self._held = threading.Lock(), False, 0
        self._candidates: dict[int, _Question] = {}
        self._peeks: dict[int, _Question] = {}
        self._check_length(len(prompt) + 1)
        self._take(len(prompt))

    @property
    def held_bytes(self) -> int:
        """See the port, as for all that follows."""
        return self._held

    def extend(self, candidate: int, ids: Sequence[int]) -> None:
        """Append ids."""
        with self._lock:
            known = self._growing(candidate) or _Question()
            self._check_length(len(self._prompt) + len(known.ids) + len(ids))
            self._take(len(ids))
            known.ids.extend(ids)
            self._candidates[candidate] = known

    def finish(self, candidate: int) -> None:
        """The candidate's only cell becomes due."""
        with self._lock:
            known = self._growing(candidate)
            if known is None or not known.ids:
                raise CandidateEnded(f"candidate {candidate} has no tokens to be scored")
            known.state = _State.ASKED
            self._end(self._peeks.pop(candidate, None), _State.DROPPED)

    def peek(self, candidate: int, closing: Sequence[int]) -> int:
        """All of it is one more cell, which becomes due."""
        with self._lock:
            known = self._growing(candidate)
            ids = [*(known.ids if known else ()), *closing]
            if not ids:
                raise CandidateEnded(f"candidate {candidate} has no tokens to be scored")
            earlier = self._peeks.get(candidate)
            if earlier is not None and earlier.state is _State.ASKED:
                raise PeekPending(f"candidate {candidate} has a peek without a score")
            self._check_length(len(self._prompt) + len(ids))
            self._take(len(ids))
            self._peeks[candidate] = _Question(ids, _State.ASKED)
            return len(self._prompt) + len(ids)

    def drop(self, candidate: int) -> None:
        """Forget a candidate."""
        with self._lock:
            self._end(self._peeks.pop(candidate, None), _State.DROPPED)
            self._end(self._candidates.get(candidate), _State.DROPPED)

    def due(self) -> list[DueCell]:
        """The finished candidates, and the peeks, that have no score yet."""
        with self._lock:
            finished = [self._cell(i, c) for i, c in self._candidates.items() if c.state is _State.ASKED]
            return finished + [self._cell(i, p, peek=True) for i, p in self._peeks.items() if p.state is _State.ASKED]

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._give(self._held // _ID_BYTES)
                self._candidates.clear()
                self._peeks.clear()

    def wants(self, question: _Question) -> bool:
        """Whether a score is still wanted.

        Raises:
            ValueError: it was given before.
        """
        with self._lock:
            if not self._closed and question.state is _State.SCORED:
                raise ValueError("a cell was scored before")
            return not self._closed and question.state is _State.ASKED

    def computed(self, question: _Question) -> None:
        """It has its score."""
        with self._lock:
            if not self._closed:
                self._end(question, _State.SCORED)

    def _end(self, known: _Question | None, state: _State) -> None:
        if known is not None and known.state in (_State.GROWING, _State.ASKED):
            self._give(len(known.ids))
            known.state, known.ids = state, []

    def _cell(self, index: int, question: _Question, *, peek: bool = False) -> DueCell:
        own = tuple(question.ids)
        cell = WholeCell(self._prompt, own, len(self._prompt) + len(own), (self, question))
        return DueCell(index, cell, peek)

    def _growing(self, candidate: int) -> _Question | None:
        if self._closed:
            raise CandidateEnded("the session is closed")
        known = self._candidates.get(candidate)
        if known is not None and known.state is not _State.GROWING:
            raise CandidateEnded(f"candidate {candidate} was finished or dropped before")
        return known

    def _check_length(self, tokens: int) -> None:
        if tokens > self._max_tokens:
            raise SequenceTooLong(f"prompt and candidate have {tokens} tokens; the model takes {self._max_tokens}")

    def _take(self, ids: int) -> None:
        self._bytes.take(ids, self._held)
        self._held += ids * _ID_BYTES

    def _give(self, ids: int) -> None:
        self._bytes.give(ids)
        self._held -= ids * _ID_BYTES
