"""Pools of labelled candidates: reading them, and drawing responses from them as AceMath does.

A pool is JSON Lines, one problem per line: `problem`, `answer`, `source`, `family`, and `candidates` with
`text`, `correct`, `score` (an outside scorer's value) and `model`.
"""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from acemath_training.errors import DataError


class Candidate(BaseModel):
    """One sampled response. `score` is the outside scorer's; here the policy's mean token log-probability."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    correct: bool
    score: float | None = None
    model: str = ""


class Pool(BaseModel):
    """A problem with its candidates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str
    answer: str
    source: str
    family: str
    candidates: tuple[Candidate, ...]

    @property
    def mixed(self) -> bool:
        """Whether it has right and wrong candidates; others teach a ranking nothing and are dropped."""
        return len({candidate.correct for candidate in self.candidates}) == 2


def read(path: Path) -> list[Pool]:
    """All pools of a file.

    Raises:
        DataError: when the file is missing or a line is malformed; the line is named.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read candidates: {error}") from error
    return [_pool(path, number, line) for number, line in enumerate(lines, 1)]


def _pool(path: Path, number: int, line: str) -> Pool:
    try:
        return Pool.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{path}, line {number}: {error.errors()[0]['msg']}") from error


def append(path: Path, pool: Pool) -> None:
    """Add one problem to a pool file."""
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(pool.model_dump(), ensure_ascii=False) + "\n")


def resume(path: Path) -> int:
    """How many whole problems a file holds; what a killed run left of its last line is cut off.

    Raises:
        DataError: when the file cannot be read or a whole line is malformed.
    """
    if not path.is_file():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return len(read(path))


def draw(
    pool: Pool, rng: random.Random, *, responses: int, sampling: Literal["score_sorted", "random"], top_k: int
) -> list[Candidate]:
    """Up to `responses` different candidates of a mixed pool, as balanced as it allows.

    `score_sorted` draws from the `top_k` best-scored right and the `top_k` worst-scored wrong candidates, so
    that mis-graded ones are rarely drawn (arXiv 2412.15084, section 4.1). Where one class has fewer than
    half, the other fills up.

    Raises:
        DataError: when the pool is not mixed, or scores are needed and missing.
    """
    if not pool.mixed:
        raise DataError("a pool needs right and wrong candidates to draw from")
    unique = list({candidate.text: candidate for candidate in pool.candidates}.values())
    right = [candidate for candidate in unique if candidate.correct]
    wrong = [candidate for candidate in unique if not candidate.correct]
    if sampling == "score_sorted":
        right = sorted(right, key=_score, reverse=True)[:top_k]
        wrong = sorted(wrong, key=_score)[:top_k]
    number_right = min(len(right), max(responses // 2, responses - len(wrong)))
    number_wrong = min(len(wrong), responses - number_right)
    return [*_sample(right, number_right, rng), *_sample(wrong, number_wrong, rng)]


def split(pools: Sequence[Pool], fraction: float, seed: int) -> tuple[list[Pool], list[Pool]]:
    """Mixed pools as (training, validation); which is which depends on the seed and the number only."""
    mixed = [pool for pool in pools if pool.mixed]
    order = list(range(len(mixed)))
    random.Random(seed).shuffle(order)
    held = set(order[: round(len(mixed) * fraction)])
    return (
        [pool for index, pool in enumerate(mixed) if index not in held],
        [pool for index, pool in enumerate(mixed) if index in held],
    )


def _sample(candidates: Sequence[Candidate], number: int, rng: random.Random) -> list[Candidate]:
    return rng.sample(list(candidates), number)


def _score(candidate: Candidate) -> float:
    if candidate.score is None:
        raise DataError("score_sorted sampling needs a score for each candidate; use sampling: random")
    return candidate.score
