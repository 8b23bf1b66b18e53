"""Ids, reference scores and deliveries that the engine's tests share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from acemath_reward.engine.device import place
from acemath_reward.engine.live import GridSession
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import Cell, LiveLimits, PromptGroup, TokenIds

CELL = 16


def ids(length: int, seed: int) -> TokenIds:
    draw = random.Random(seed)
    return tuple(draw.randrange(384) for _ in range(length))


PROMPTS = tuple(ids(length, length) for length in (0, 1, 16, 31, 90))
OWN = tuple(ids(length, 1000 + length) for length in (1, 2, 15, 16, 17, 32, 33, 64, 100, 150))


@cache
def engine_of(directory: Path, dtype: str = "bfloat16", **options: bool | int) -> RewardEngine:
    return load_engine(directory, place("cpu", dtype, threads=1, cell_tokens=CELL, **options))  # type: ignore[arg-type]


@cache
def alone(directory: Path, dtype: str) -> Mapping[tuple[int, int], float]:
    """(prompt, candidate) -> its score, computed by itself in one piece."""
    engine = engine_of(directory, dtype)
    return {
        (p, c): engine.score([PromptGroup(prompt, (own,))])[0][0]
        for p, prompt in enumerate(PROMPTS)
        for c, own in enumerate(OWN)
    }


def bounded(directory: Path, total: int, session: int) -> RewardEngine:
    """A float32 engine that may hold so many tokens (2 layers, 2 key heads of 16)."""
    token = 2 * 2 * 2 * 16 * 4
    placement = place("cpu", "float32", threads=1, cell_tokens=CELL)
    return load_engine(directory, placement, LiveLimits(total * token, session * token))


def step(engine: RewardEngine, sessions: Sequence[GridSession]) -> list[dict[int, float]]:
    """Compute all that is due in one pass; the scores it gave, by session and candidate."""
    due = [(number, cell) for number, session in enumerate(sessions) for cell in session.due()]
    values = engine.forward([part.cell for _, part in due])
    found: list[dict[int, float]] = [{} for _ in sessions]
    for (number, part), value in zip(due, values, strict=True):
        assert (value is not None) == part.cell.scored
        if value is not None and part.candidate is not None:
            found[number][part.candidate] = value
    return found


def tokens(cells: Sequence[Cell]) -> int:
    return sum(cell.tokens for cell in cells)
