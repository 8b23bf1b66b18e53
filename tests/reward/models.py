"""Models that take microseconds, for everything around the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from acemath_reward.batching import Encoded
from acemath_reward.ports import (
    CandidateEnded,
    Cell,
    DueCell,
    ModelServer,
    PeekPending,
    PromptGroup,
    SequenceTooLong,
    TokenIds,
)

POISON = -13  # never drawn, never a real id


def cost(sequences: Iterable[Encoded]) -> int:
    """Rows that an engine computes for these together: every prompt once."""
    given = list(sequences)
    return sum(len(one.own) for one in given) + sum(map(len, {one.prompt for one in given}))


def score_of(prompt: TokenIds, own: TokenIds) -> float:
    return float(sum(prompt) * 0.25 + sum(own) + len(own) / 64)


@dataclass(frozen=True, eq=False)
class ArithmeticCell:
    """Tokens of one sequence; `whole` is what it is scored by, `group` the group that it was planned for."""

    ids: TokenIds
    whole: tuple[TokenIds, TokenIds] | None = None
    group: PromptGroup | None = None
    computed: Callable[[], None] = lambda: None

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> bool:
        return self.whole is not None


@dataclass
class ArithmeticSession:
    """A whole cell is due once a token follows it, the last one after `finish`; each until it is computed.

    A peek is one cell: what of it lies behind the candidate's whole cells, when these are computed.
    """

    prompt: TokenIds
    size: int
    room: int
    own: dict[int, list[int]] = field(default_factory=dict)
    done: dict[int | None, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    peeks: dict[int, tuple[int, TokenIds]] = field(default_factory=dict)  # its first token that is not shared, and ids
    closed: bool = False

    @property
    def held_bytes(self) -> int:
        return sum(map(len, self.own.values()))

    def extend(self, candidate: int, ids: Sequence[int]) -> None:
        self._check_growing(candidate)
        if len(self.prompt) + len(self.own.get(candidate, ())) + len(ids) > self.room:
            raise SequenceTooLong(f"too long for {self.room}")
        self.own.setdefault(candidate, []).extend(ids)

    def finish(self, candidate: int) -> None:
        if not self.own.get(candidate) or candidate in self.finished:
            raise CandidateEnded("ended")
        self.finished.add(candidate)
        self.peeks.pop(candidate, None)

    def peek(self, candidate: int, closing: Sequence[int]) -> int:
        self._check_growing(candidate)
        if candidate in self.peeks:
            raise PeekPending("one at a time")
        own = self.own.get(candidate, [])
        shared, ids = max(0, len(own) - 1) // self.size * self.size, (*own, *closing)
        if not ids:
            raise CandidateEnded("nothing to be scored")
        if len(self.prompt) + len(ids) > self.room:
            raise SequenceTooLong(f"too long for {self.room}")
        self.peeks[candidate] = shared, ids
        return len(ids) - shared

    def drop(self, candidate: int) -> None:
        self.peeks.pop(candidate, None)
        if self.own.pop(candidate, None) is not None:
            self.finished.add(candidate)

    def close(self) -> None:
        self.closed = True
        self.own.clear()
        self.peeks.clear()

    def _check_growing(self, candidate: int) -> None:
        if self.closed or candidate in self.finished:
            raise CandidateEnded("ended")

    def due(self) -> list[DueCell]:
        cells = []
        if self.prompt and not self.done.get(None) and not self.closed:
            cells.append(DueCell(None, self._cell(None, 0, self.prompt)))
        for candidate, own in self.own.items():
            whole = (len(own) - 1) // self.size * self.size
            for at in range(self.done.get(candidate, 0), whole, self.size):
                cells.append(DueCell(candidate, self._cell(candidate, at, tuple(own[at : at + self.size]))))
            if candidate in self.finished and self.done.get(candidate, 0) < len(own):
                last = self._cell(candidate, whole, tuple(own[whole:]), (self.prompt, tuple(own)))
                cells.append(DueCell(candidate, last))
        for candidate, (shared, ids) in self.peeks.items():
            if self.done.get(candidate, 0) >= shared:
                cells.append(DueCell(candidate, self._peek_cell(candidate, shared, ids), peek=True))
        return cells

    def _peek_cell(self, candidate: int, shared: int, ids: TokenIds) -> ArithmeticCell:
        def computed() -> None:
            assert not self.prompt or self.done.get(None), "before its prompt"
            self.peeks.pop(candidate, None)

        return ArithmeticCell(ids[shared:], (self.prompt, ids), None, computed)

    def _cell(
        self, candidate: int | None, at: int, ids: TokenIds, whole: tuple[TokenIds, TokenIds] | None = None
    ) -> ArithmeticCell:
        def computed() -> None:
            assert self.done.get(candidate, 0) == at, "out of order"
            assert candidate is None or not self.prompt or self.done.get(None), "before its prompt"
            self.done[candidate] = at + len(ids)

        return ArithmeticCell(ids, whole, None, computed)


class ArithmeticModel:
    """Adds ids; raises on a pass that holds `poison`; can be held in the middle of a pass."""

    def __init__(self, max_tokens: int = 320, vocab_size: int = 384) -> None:
        self._max_tokens, self._vocab_size = max_tokens, vocab_size
        self.batches: list[list[PromptGroup]] = []
        self.passes: list[list[TokenIds]] = []
        self.sessions: list[ArithmeticSession] = []
        self.entered, self.hold = threading.Semaphore(0), threading.Event()
        self.hold.set()
        self.answer: Callable[[TokenIds, TokenIds], float] = score_of
        self.threads: set[int] = set()
        self.poison = POISON

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def cell_tokens(self) -> int:
        return 8

    @property
    def live_bytes(self) -> int:
        return sum(session.held_bytes for session in self.sessions)

    def plan(self, group: PromptGroup) -> list[Cell]:
        prompt = [ArithmeticCell(group.prompt, group=group)] if group.prompt else []
        return [*prompt, *(ArithmeticCell(own, (group.prompt, own), group) for own in group.candidates)]

    def open(self, prompt: TokenIds) -> ArithmeticSession:
        if len(prompt) >= self._max_tokens:
            raise SequenceTooLong("the prompt leaves no room")
        self.sessions.append(ArithmeticSession(prompt, self.cell_tokens, self._max_tokens))
        return self.sessions[-1]

    def forward(self, cells: Sequence[Cell]) -> list[float | None]:
        given = [cell for cell in cells if isinstance(cell, ArithmeticCell)]
        self.threads.add(threading.get_ident())
        self.passes.append([cell.ids for cell in given])
        self.batches.append(list({id(cell.group): cell.group for cell in given if cell.group}.values()))
        self.entered.release()
        assert self.hold.wait(30), "a test forgot to let the model go on"
        if any(self.poison in cell.ids for cell in given):
            raise RuntimeError("poisoned")
        for cell in given:
            cell.computed()
        return [self.answer(*cell.whole) if cell.whole else None for cell in given]

    @property
    def server(self) -> ModelServer | None:
        return None

    def facts(self) -> Mapping[str, object]:
        return {"dtype": "none", "device": "none"}

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        values = self.forward([cell for group in groups for cell in self.plan(group)])
        found = (value for value in values if value is not None)
        return [[next(found) for _ in group.candidates] for group in groups]
