"""Models that take microseconds, for everything around the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from acemath_reward.ports import PromptGroup, TokenIds

POISON = -13  # never drawn, never a real id


def score_of(prompt: TokenIds, own: TokenIds) -> float:
    return float(sum(prompt) * 0.25 + sum(own) + len(own) / 64)


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
