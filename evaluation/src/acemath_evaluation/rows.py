"""Problem and pool files: JSON Lines, one row a line, gzip by the name's ending."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

T = TypeVar("T", bound="Problem")


class RowError(ValueError):
    """A row of a file is not what it should be; the message names file and line."""


class ProblemMeta(BaseModel):
    """What is read of a row's `meta`; other keys are the source's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    template: str | int | None = None


class Problem(BaseModel):
    """One problem with its reference answer. Further keys of a row (solution, source, licence …) are not used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    problem: str = Field(min_length=1)
    answer: str | None
    meta: ProblemMeta = ProblemMeta()

    @property
    def cluster(self) -> str:
        """What is drawn in the bootstrap: the template the problem was made from, else the problem itself."""
        return self.id if self.meta.template is None else f"template:{self.meta.template}"


class PoolCandidate(BaseModel):
    """A given candidate solution and whether its final answer is right."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    correct: bool


class Pool(Problem):
    """A problem with labelled candidates."""

    candidates: tuple[PoolCandidate, ...] = Field(min_length=1)


def load_problems(path: Path, *, sample: int | None = None) -> list[Problem]:
    """Return the problems of a file that have an answer; with `sample`, that many of them, always the same ones.

    The sample takes the rows with the smallest SHA-256 of their id: it does not depend on the file's order.

    Raises:
        RowError: a line is no such row, or an id occurs twice.
    """
    problems = [row for row in _rows(path, Problem) if row.answer is not None and row.answer.strip()]
    return _sampled(problems, sample)


def load_pools(path: Path, *, sample: int | None = None) -> list[Pool]:
    """Return the pools of a file, sampled like `load_problems`.

    Raises:
        RowError: a line is no such row, or an id occurs twice.
    """
    return _sampled(list(_rows(path, Pool)), sample)


def set_name(path: Path) -> str:
    """Return the name of a benchmark: the file's name without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _sampled(rows: list[T], size: int | None) -> list[T]:
    if size is None or size >= len(rows):
        return rows
    chosen = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:size]
    kept = {row.id for row in chosen}
    return [row for row in rows if row.id in kept]


def _rows(path: Path, kind: type[T]) -> Iterator[T]:
    seen: set[str] = set()
    for number, document in _documents(path):
        try:
            row = kind.model_validate(document)
        except ValidationError as error:
            raise RowError(f"{path}:{number}: {_first_problem(error)}") from error
        if row.id in seen:
            raise RowError(f"{path}:{number}: the id {row.id} occurs twice")
        seen.add(row.id)
        yield row


def _documents(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise RowError(f"{path}:{number}: not JSON: {error}") from error


def _first_problem(error: ValidationError) -> str:
    details: Sequence[Any] = error.errors(include_url=False, include_input=False)
    return f"{'.'.join(str(part) for part in details[0]['loc'])}: {details[0]['msg']}"
