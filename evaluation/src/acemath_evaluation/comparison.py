"""Two runs of the same problems, each of one release: how much better or worse is the second, pair by pair?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from acemath_answers import AnswerJudge
from acemath_core.comparison import Comparison, PairedDifference, Sampled
from acemath_evaluation.benchmark import GradedSet, ShowProgress, find_draws, grade_journal
from acemath_evaluation.curves import values_at
from acemath_evaluation.intervals import LEVEL, METHOD, bootstrap
from acemath_evaluation.journal import read_entries
from acemath_evaluation.metrics import METRICS, label
from acemath_evaluation.report import table

COMPARED = METRICS[: METRICS.index("random")]
"""The others are controls, which say nothing of a release."""


class NotComparable(Exception):
    """The two runs are not of two releases on the same problems with the same options."""


@dataclass(frozen=True, slots=True)
class RunSet:
    """One set of a run: graded, with what was asked and the digest of its journal."""

    graded: GradedSet
    questions: dict[str, tuple[str, str | None]]
    """Id → problem and reference answer, of the problems that have a record."""
    sha256: str


def load_run(directory: Path, judge: AnswerJudge, show: ShowProgress) -> dict[str, RunSet]:
    """Return the sets of a run by name; problems that failed count as wrong.

    Raises:
        NothingToMeasure: the directory holds no run.
        JournalError: a file is no journal.
    """
    return {found.graded.name: found for found in (_load(path, judge, show) for path in find_draws(directory))}


def compare(baseline: dict[str, RunSet], candidate: dict[str, RunSet]) -> Comparison:
    """Return the paired differences, candidate minus baseline, of every metric on every set.

    Raises:
        NotComparable: another release inside a run, the same in both, other problems, or other sampling options.
    """
    _check_same_questions(baseline, candidate)
    runs = [one.graded for one in (*baseline.values(), *candidate.values())]
    options = {(str(run.provenance["digest"]), run.n) for run in runs}
    if len(options) > 1:
        raise NotComparable("the runs were sampled with different options; sample both with the same n, seed, …")
    (digest, n), results = options.pop(), list[PairedDifference]()
    for name in sorted(baseline):
        results += _differences(name, n, baseline[name].graded, candidate[name].graded)
    try:
        return Comparison(
            baseline=_side(baseline),
            candidate=_side(candidate),
            sampling=digest,
            n=n,
            level=LEVEL,
            method=METHOD,
            complete=all(run.run.complete for run in runs),
            results=tuple(results),
        )
    except ValidationError as error:
        raise NotComparable(error.errors(include_url=False, include_input=False)[0]["msg"]) from error


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison in Markdown, as percentages and, in points, differences with their intervals."""
    header = ["set", "metric", "problems", "baseline", "candidate", "candidate - baseline"]
    rows = [
        [
            one.set, one.metric, str(one.problems), f"{100 * one.baseline:.1f}", f"{100 * one.candidate:.1f}",
            f"{100 * one.difference:+.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]",
        ]
        for one in comparison.results
    ]  # fmt: skip
    head = "" if comparison.complete else "INCOMPLETE: a run has problems without an outcome. "
    sides = f"{comparison.candidate.release} against {comparison.baseline.release}"
    return f"{head}{sides}, {comparison.level:.0%} paired intervals ({comparison.method})\n\n{table(header, rows)}"


def _load(path: Path, judge: AnswerJudge, show: ShowProgress) -> RunSet:
    _, entries = read_entries(path)
    questions = {name: (record["problem"], record["answer"]) for name, record in entries.records.items()}
    return RunSet(grade_journal(path, judge, show), questions, hashlib.sha256(path.read_bytes()).hexdigest())


def _check_same_questions(baseline: dict[str, RunSet], candidate: dict[str, RunSet]) -> None:
    if baseline.keys() != candidate.keys():
        raise NotComparable(f"the runs hold different sets: {', '.join(sorted(baseline.keys() ^ candidate.keys()))}")
    for name, one in baseline.items():
        other = candidate[name]
        ids = [{item.problem.id for item in side.graded.graded} for side in (one, other)]
        if ids[0] != ids[1]:
            raise NotComparable(f"{name}: {len(ids[0] ^ ids[1])} problems have an outcome in one run only; finish both")
        for problem in one.questions.keys() & other.questions.keys():
            if one.questions[problem] != other.questions[problem]:
                raise NotComparable(f"{name}: problem {problem} is not the same in both runs; sample both anew")


def _side(sets: dict[str, RunSet]) -> Sampled:
    said = {tuple(one.graded.provenance.get(key) for key in ("release", "policy", "reward")) for one in sets.values()}
    if len(said) > 1 or None in (facts := said.pop()) or "," in str(facts[0]):
        raise NotComparable("a run holds answers of several releases, or none; sample each run against one release")
    release, policy, reward = map(str, facts)
    journals = {name: one.sha256 for name, one in sets.items()}
    return Sampled(release=release, policy=policy, reward=reward, journals=journals)


def _differences(name: str, n: int, baseline: GradedSet, candidate: GradedSet) -> list[PairedDifference]:
    pairs = {item.problem.id: item.problem for item in candidate.graded}
    problems = sorted((item.problem for item in baseline.graded), key=lambda problem: problem.id)
    before = np.array([values_at(problem, n) for problem in problems])[:, : len(COMPARED)]
    after = np.array([values_at(pairs[problem.id], n) for problem in problems])[:, : len(COMPARED)]
    clusters = [problem.cluster for problem in problems]
    limits = [-1.0] * len(COMPARED), [1.0] * len(COMPARED)
    estimates = bootstrap(after - before, clusters, limits=limits)
    return [
        PairedDifference(
            set=name,
            metric=label(metric, n),
            problems=len(problems),
            clusters=len(set(clusters)),
            baseline=float(before[:, i].mean()),
            candidate=float(after[:, i].mean()),
            difference=estimates[i].value,
            low=estimates[i].low,
            high=estimates[i].high,
        )
        for i, metric in enumerate(COMPARED)
    ]
