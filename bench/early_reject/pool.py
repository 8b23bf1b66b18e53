"""Graded candidates with the scores of their beginnings, in one small file without texts: replays need no model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acemath_answers import AnswerJudge
from acemath_evaluation.benchmark import grade_journal
from acemath_evaluation.grading import grade_pool
from acemath_evaluation.journal import read_entries
from acemath_evaluation.metrics import GradedCandidate, GradedProblem
from acemath_evaluation.rows import load_pools, set_name
from bench.recorded.pools import JOURNAL, Recorded, RecordedSet


def collect(files: Sequence[tuple[Path, Path]], judge: AnswerJudge) -> dict[str, Any]:
    """One document of several sets.

    Args:
        files: of each set, its journal or pools, and the journal of `score_file`.
        judge: says which answers are the same.

    Raises:
        ValueError: the sets were scored by several versions, or at other cuts.
    """
    configs = [read_entries(drafts)[0] for _, drafts in files]
    if any(config != configs[0] for config in configs):
        raise ValueError("the files were scored by several versions, or cut at several places; score them alike")
    sets = [_set(path, read_entries(drafts)[1].records, judge) for path, drafts in files]
    return {"reward": configs[0]["reward"], "cuts": configs[0]["cuts"], "sets": sets}


def _set(path: Path, drafts: dict[str, dict[str, Any]], judge: AnswerJudge) -> dict[str, Any]:
    problems = [_problem(problem, drafts[problem.id]) for problem in _graded(path, judge) if problem.id in drafts]
    name = path.name.removesuffix(JOURNAL) if path.name.endswith(JOURNAL) else set_name(path)
    return {"name": name, "columns": ["tokens", "score", "answer_class", "correct", "drafts"], "problems": problems}


def _graded(path: Path, judge: AnswerJudge) -> list[GradedProblem]:
    if path.name.endswith(JOURNAL):
        return [item.problem for item in grade_journal(path, judge, lambda *_: lambda: None).graded]
    return [grade_pool(pool, [None] * len(pool.candidates), judge).problem for pool in load_pools(path)]


def _problem(problem: GradedProblem, found: dict[str, Any]) -> dict[str, Any]:
    # A candidate that never came is at the end of those that were graded and has no drafts.
    columns = zip(problem.candidates, found["tokens"], found["scores"], found["drafts"], strict=False)
    rows = [[tokens, score, c.answer_class, c.correct, list(drafts.values())] for c, tokens, score, drafts in columns]
    return {"id": problem.id, "cluster": problem.cluster, "candidates": rows}


def write(document: dict[str, Any], out: Path) -> None:
    """Write it, the same bytes for the same document; numbers to seven digits, which is what a score in float32 has."""
    content = json.dumps(_rounded(document), separators=(",", ":")).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(content, 9, mtime=0))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> list[RecordedSet]:
    """The sets of a file. `drafts` of a candidate are those at the first cuts: it has ended at the others."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    return [_recorded(one, document["reward"], document["cuts"]) for one in document["sets"]]


def _recorded(one: dict[str, Any], reward: str, cuts: Sequence[int]) -> RecordedSet:
    problems = tuple(tuple(_candidate(i, row, cuts) for i, row in enumerate(p["candidates"])) for p in one["problems"])
    graded = tuple(
        GradedProblem(
            p["id"], p["cluster"], tuple(GradedCandidate(c.correct, c.score, c.answer_class, c.cost) for c in pool)
        )
        for p, pool in zip(one["problems"], problems, strict=True)
    )
    return RecordedSet(
        name=one["name"],
        unit="tokens",
        n=min(map(len, problems)),
        scored=any(c.score is not None for pool in problems for c in pool),
        names=tuple(p.id for p in graded),
        problems=problems,
        clusters=tuple(f"{one['name']}/{p.cluster}" for p in graded),
        graded=graded,
        reward=reward,
    )


def _candidate(index: int, row: list[Any], cuts: Sequence[int]) -> Recorded:
    tokens, score, answer_class, correct, drafts = row
    return Recorded(index, score, answer_class, correct, tokens, dict(zip(cuts, drafts, strict=False)))
