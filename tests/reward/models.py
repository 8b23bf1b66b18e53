"""Models that take microseconds, for everything around the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from acemath_reward.ports import Cell, DueCell, PromptGroup, TokenIds

POISON = -13  # never drawn, never a real id


def score_of(prompt: TokenIds, own: TokenIds) -> float:
    return float(sum(prompt) * 0.25 + sum(own) + len(own) / 64)


@dataclass(frozen=True, eq=False)
class ArithmeticCell:
    """Tokens of one sequence; `whole` is what it is scored by."""

    ids: TokenIds
    whole: tuple[TokenIds, TokenIds] | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> bool:
        return self.whole is not None


@dataclass
class ArithmeticSession:
    """Hands out each whole cell once a token follows it, and the last one after `finish`."""

    prompt: TokenIds
    size: int
    own: dict[int, list[int]] = field(default_factory=dict)
    handed: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    prompt_due: bool = True

    @property
    def held_bytes(self) -> int:
        return sum(map(len, self.own.values()))

    def extend(self, candidate: int, ids: Sequence[int]) -> None:
        self.own.setdefault(candidate, []).extend(ids)

    def finish(self, candidate: int) -> None:
        self.finished.add(candidate)

    def drop(self, candidate: int) -> None:
        self.own.pop(candidate, None)

    def close(self) -> None:
        self.own.clear()

    def due(self) -> list[DueCell]:
        cells = [DueCell(None, ArithmeticCell(self.prompt))] if self.prompt_due and self.prompt else []
        self.prompt_due = False
        for candidate, own in self.own.items():
            start = self.handed.get(candidate, 0)
            whole = (len(own) - 1) // self.size * self.size
            cells += [
                DueCell(candidate, ArithmeticCell(tuple(own[at : at + self.size])))
                for at in range(start, whole, self.size)
            ]
            if candidate in self.finished and start <= whole:
                scored = ArithmeticCell(tuple(own[whole:]), (self.prompt, tuple(own)))
                cells.append(DueCell(candidate, scored))
                whole = len(own) + 1
            self.handed[candidate] = max(start, whole)
        return cells


class ArithmeticModel:
    """Adds ids; raises on a batch that holds `POISON`; can be held in the middle of a batch."""

    def __init__(self, max_tokens: int = 320, vocab_size: int = 384) -> None:
        self._max_tokens, self._vocab_size = max_tokens, vocab_size
        self.batches: list[list[PromptGroup]] = []
        self.entered, self.hold = threading.Semaphore(0), threading.Event()
        self.hold.set()
        self.answer: Callable[[TokenIds, TokenIds], float] = score_of
        self.threads: set[int] = set()

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
        return 0

    def plan(self, group: PromptGroup) -> list[Cell]:
        prompt = [ArithmeticCell(group.prompt)] if group.prompt else []
        return [*prompt, *(ArithmeticCell(own, (group.prompt, own)) for own in group.candidates)]

    def open(self, prompt: TokenIds) -> ArithmeticSession:
        return ArithmeticSession(prompt, self.cell_tokens)

    def forward(self, cells: Sequence[Cell]) -> list[float | None]:
        return [self.answer(*cell.whole) if cell.whole else None for cell in cells]  # type: ignore[attr-defined]

    def facts(self) -> Mapping[str, object]:
        return {"dtype": "none", "device": "none"}

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float]]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(groups))
        self.entered.release()
        assert self.hold.wait(30), "a test forgot to let the model go on"
        if any(POISON in own for group in groups for own in group.candidates):
            raise RuntimeError("poisoned")
        return [[self.answer(group.prompt, own) for own in group.candidates] for group in groups]
