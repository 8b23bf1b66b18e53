"""The three journeys: sample a file of problems, measure what was sampled, measure pools of given candidates."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acemath_answers import AnswerJudge
from acemath_evaluation.calibration import Fitted, calibrate
from acemath_evaluation.grading import Graded, failed_problem, grade_draws, grade_pool
from acemath_evaluation.http_calls import Service
from acemath_evaluation.journal import Entries, Journal, config_digest, read_entries
from acemath_evaluation.metrics import MISSING
from acemath_evaluation.pools import pool_config, score
from acemath_evaluation.results import NothingToMeasure, RunCount, SetResult, add_counts, measure_set
from acemath_evaluation.rows import Pool, Problem, RowError, load_pools, load_problems, set_name
from acemath_evaluation.sampling import SamplingOptions, sample

Step = Callable[[], None]
ShowProgress = Callable[[str, int, int], Step]
"""Title, total and what is done already → the function to call after each further one."""

_DRAWS = ".draws.jsonl"
_SCORES = ".scores.jsonl"


@dataclass(frozen=True, slots=True)
class SampledFile:
    """What a run did with one file of problems; `failed` maps problem ids to reasons."""

    journal: Path
    digest: str
    problems: int
    done: int
    failed: dict[str, str]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "journal": str(self.journal),
            "digest": self.digest,
            "problems": self.problems,
            "done": self.done,
            "failed": self.failed,
        }


def sample_file(
    path: Path,
    directory: Path,
    gateway: Service,
    options: SamplingOptions,
    sample_size: int | None,
    concurrency: int,
    show: ShowProgress,
) -> SampledFile:
    """Sample candidates for the problems of a file into `<directory>/<name>.draws.jsonl`.

    Raises:
        RowError, JournalError, SamplingStopped: see where they are defined.
    """
    problems = load_problems(path, sample=sample_size)
    with Journal(directory / f"{set_name(path)}{_DRAWS}", options.config()) as journal:
        _check_same(problems, journal)
        done = sum(problem.id in journal.records for problem in problems)
        step = show(set_name(path), len(problems), done)
        failed = asyncio.run(sample(problems, journal, gateway, options, concurrency=concurrency, progress=step))
        done = sum(problem.id in journal.records for problem in problems)
        return SampledFile(journal.path, config_digest(journal.config), len(problems), done, failed)


def find_draws(directory: Path) -> list[Path]:
    """Return the journals of a run.

    Raises:
        NothingToMeasure: the directory holds none.
    """
    journals = sorted(directory.glob(f"*{_DRAWS}"))
    if not journals:
        raise NothingToMeasure(f"{directory} holds no run (no *{_DRAWS})")
    return journals


@dataclass(frozen=True, slots=True)
class GradedSet:
    """A run's graded problems, ready to be measured; `n` candidates were asked for of each."""

    name: str
    n: int
    graded: list[Graded]
    run: RunCount
    provenance: dict[str, Any]
    parts: tuple[str, ...] = ()

    def measure(self, n: int | None) -> SetResult:
        """Measure at n candidates (None: as many as were asked for).

        Raises:
            NothingToMeasure: there are no problems, or fewer candidates were asked for.
        """
        return measure_set(self.name, self.graded, n or self.n, self.provenance, run=self.run, parts=self.parts)


def grade_journal(
    journal: Path, judge: AnswerJudge, show: ShowProgress, *, failed_count_as_wrong: bool = True
) -> GradedSet:
    """Grade a journal's candidates.

    A candidate that never came is wrong; so is a problem that failed, unless the caller leaves these out. Problems
    without an outcome are not in the set: its `run` says how many there are.

    Raises:
        JournalError: the file is no journal.
    """
    config, entries = read_entries(journal)
    n, name = int(config["n"]), journal.name.removesuffix(_DRAWS)
    graded = _grade(f"grading {name}", entries, n, judge, show)
    run = _count(entries, graded, failed_count_as_wrong)
    if failed_count_as_wrong:
        graded += [failed_problem(key, entries.asked.get(key, key), n) for key in entries.failed]
    records = list(entries.records.values())
    releases = sorted({record["release"] for record in records})
    models = records[0]["models"] if records else {}
    provenance = {**config, "digest": config_digest(config), "release": ", ".join(releases), **models}
    return GradedSet(name, n, graded, run, provenance)


def combine(name: str, names: Sequence[str], sets: Sequence[GradedSet]) -> GradedSet:
    """Return the problems of several sets as one; families of the same name in two sets stay two families.

    Raises:
        NothingToMeasure: there is no such set, or the sets were asked for different numbers of candidates.
    """
    by_name = {item.name: item for item in sets}
    if missing := [part for part in names if part not in by_name]:
        raise NothingToMeasure(f"group {name}: there is no set {', '.join(missing)}, only {', '.join(by_name)}")
    chosen = [by_name[part] for part in dict.fromkeys(names)]
    if len({item.n for item in chosen}) > 1:
        raise NothingToMeasure(f"group {name}: its sets were asked for different numbers of candidates")
    graded = [_renamed(graded, item.name) for item in chosen for graded in item.graded]
    run = add_counts([item.run for item in chosen])
    parts = tuple(item.name for item in chosen)
    return GradedSet(name, chosen[0].n, graded, run, {"sets": ", ".join(parts)}, parts)


def calibrate_sets(sets: Sequence[GradedSet]) -> Fitted:
    """Fit what the scores of the sets' reward version mean, on all of their problems together.

    Raises:
        NothingToMeasure: the sets are of several reward versions, or all candidates are right or all wrong.
    """
    versions = sorted({str(item.provenance.get("reward")) for item in sets})
    if len(versions) > 1:
        raise NothingToMeasure(f"the runs are of several reward versions ({', '.join(versions)}); calibrate one")
    return calibrate([_renamed(graded, item.name).problem for item in sets for graded in item.graded], versions[0])


def _renamed(graded: Graded, prefix: str) -> Graded:
    problem = graded.problem
    renamed = replace(problem, id=f"{prefix}/{problem.id}", cluster=f"{prefix}/{problem.cluster}")
    return replace(graded, problem=renamed)


def _grade(title: str, entries: Entries, n: int, judge: AnswerJudge, show: ShowProgress) -> list[Graded]:
    step = show(title, len(entries.records), 0)
    graded: list[Graded] = []
    for record in entries.records.values():
        graded.append(grade_draws(record, n, judge))
        step()
    return graded


def _count(entries: Entries, answered: Sequence[Graded], failed_count_as_wrong: bool) -> RunCount:
    have_outcome = {*entries.records, *entries.failed}
    return RunCount(
        asked=len({*entries.asked, *have_outcome}),
        answered=len(answered),
        failed=dict(sorted(Counter(entries.failed.values()).items())),
        unfinished=len(entries.asked.keys() - have_outcome),
        missing_candidates=sum(item.problem.candidates.count(MISSING) for item in answered),
        asked_is_known=entries.asked.keys() >= have_outcome,
        failed_count_as_wrong=failed_count_as_wrong,
    )


def measure_pools(
    path: Path,
    directory: Path,
    service: Service,
    reward: str | None,
    sample_size: int | None,
    concurrency: int,
    n: int,
    judge: AnswerJudge,
    show: ShowProgress,
) -> SetResult:
    """Score the pools of a file into `<directory>/<name>.scores.jsonl` and measure them by draws of n.

    Raises:
        RowError, JournalError, CallError, SamplingStopped, NothingToMeasure: see where they are defined.
    """
    name = set_name(path)
    pools = load_pools(path, sample=sample_size)
    with Journal(directory / f"{name}{_SCORES}", pool_config(reward)) as journal:
        done = sum(pool.id in journal.records for pool in pools)
        step = show(f"scoring {name}", len(pools), done)
        asyncio.run(score(pools, journal, service, concurrency=concurrency, progress=step))
        records = journal.records
    graded = [grade_pool(pool, _scores(pool, records[pool.id]), judge) for pool in pools]
    models = sorted({record["model"] for record in records.values() if record["model"]})
    return measure_set(name, graded, n, {"reward": ", ".join(models)})


def _check_same(problems: Sequence[Problem], journal: Journal) -> None:
    for problem in problems:
        record = journal.records.get(problem.id)
        if record is not None and (record["problem"], record["answer"]) != (problem.problem, problem.answer):
            raise RowError(f"problem {problem.id} is not what it was when {journal.path} was written")


def _scores(pool: Pool, record: dict[str, Any]) -> list[float | None]:
    scores: list[float | None] = record["scores"]
    if len(scores) != len(pool.candidates):
        raise RowError(f"pool {pool.id} had {len(scores)} candidates when it was scored, now {len(pool.candidates)}")
    return scores
