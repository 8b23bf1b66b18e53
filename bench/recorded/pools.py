"""Recorded candidates as a replay needs them: right or wrong, score, class of answers, and what each cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from acemath_answers import AnswerJudge
from acemath_evaluation.benchmark import grade_journal
from acemath_evaluation.grading import grade_pool
from acemath_evaluation.metrics import MISSING, GradedProblem
from acemath_evaluation.rows import load_pools, set_name

JOURNAL = ".draws.jsonl"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One candidate. `index` is its place in the order of a replay, `cost` is in the set's unit.

    `drafts` are the scores of its beginnings, by the number of tokens after which it was cut; empty where none were
    asked for.
    """

    index: int
    score: float | None
    answer_class: int | None
    correct: bool
    cost: int
    drafts: Mapping[int, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class RecordedSet:
    """The problems of one set, each with at least `n` candidates.

    Attributes:
        name: of its file.
        unit: of cost: tokens, or characters where tokens were not recorded.
        n: the largest N that can be replayed.
        scored: whether the candidates have scores.
        names: of the problems.
        problems: candidates of each problem.
        clusters: of each problem, what the bootstrap draws.
        graded: the same problems, for a calibration.
        reward: version that gave the scores, or an empty string.
    """

    name: str
    unit: str
    n: int
    scored: bool
    names: tuple[str, ...]
    problems: tuple[tuple[Recorded, ...], ...]
    clusters: tuple[str, ...]
    graded: tuple[GradedProblem, ...]
    reward: str


def read_set(path: Path, judge: AnswerJudge, n: int | None = None) -> RecordedSet:
    """A journal of `acemath eval run`, or a file of pools (`id, problem, answer, candidates: [{text, correct}]`).

    Args:
        path: the file.
        judge: says which answers are the same.
        n: candidates that a problem must have to be taken; for a journal, all that were asked for.
    """
    if path.name.endswith(JOURNAL):
        graded_set = grade_journal(path, judge, lambda *_: lambda: None)
        problems, name = [item.problem for item in graded_set.graded], path.name.removesuffix(JOURNAL)
        reward = str(graded_set.provenance.get("reward", ""))
        return _set(name, "tokens", n or graded_set.n, problems, reward)
    pools = load_pools(path)
    problems = [grade_pool(pool, [None] * len(pool.candidates), judge).problem for pool in pools]
    return _set(set_name(path), "characters", n or min(len(p.candidates) for p in problems), problems, "")


def _set(name: str, unit: str, n: int, problems: Sequence[GradedProblem], reward: str) -> RecordedSet:
    kept = [p for p in problems if sum(c is not MISSING for c in p.candidates) >= n]
    recorded = tuple(
        tuple(
            Recorded(i, c.score, c.answer_class, c.correct, int(c.length or 0))
            for i, c in enumerate(p.candidates)
            if c is not MISSING
        )
        for p in kept
    )
    return RecordedSet(
        name=name,
        unit=unit,
        n=n,
        scored=any(c.score is not None for pool in recorded for c in pool),
        names=tuple(p.id for p in kept),
        problems=recorded,
        clusters=tuple(f"{name}/{p.cluster}" for p in kept),
        graded=tuple(kept),
        reward=reward,
    )


def joined(sets: Sequence[RecordedSet]) -> list[RecordedSet]:
    """Sets of one unit, one N and one reward version as one, where there are several."""
    groups: dict[tuple[object, ...], list[RecordedSet]] = {}
    for one in sets:
        groups.setdefault((one.unit, one.n, one.reward, one.scored), []).append(one)
    return [_as_one(group) for group in groups.values() if len(group) > 1]


def _as_one(group: Sequence[RecordedSet]) -> RecordedSet:
    return replace(
        group[0],
        name="+".join(one.name for one in group),
        names=tuple(name for one in group for name in one.names),
        problems=tuple(pool for one in group for pool in one.problems),
        clusters=tuple(cluster for one in group for cluster in one.clusters),
        graded=tuple(problem for one in group for problem in one.graded),
    )
