"""The result of a benchmark: what was measured on one set of problems, and its JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from acemath_evaluation.curves import Measured, curve
from acemath_evaluation.grading import Graded
from acemath_evaluation.metrics import MISSING, auc, label, pairwise_accuracy


class NothingToMeasure(Exception):
    """No problem has enough candidates."""


@dataclass(frozen=True, slots=True)
class RunCount:
    """What became of the problems that a run was asked for."""

    asked: int
    answered: int
    failed: dict[str, int]
    """Code of the failure → problems."""
    unfinished: int
    """Problems that neither have an answer nor failed: the run was ended before."""
    missing_candidates: int
    """Of answered problems."""
    asked_is_known: bool
    """False for a journal that does not say what its run was asked for: then `asked` counts what has an outcome."""
    failed_count_as_wrong: bool

    @property
    def complete(self) -> bool:
        """Whether every problem that was asked for has an outcome."""
        return self.asked_is_known and not self.unfinished


def add_counts(runs: Sequence[RunCount]) -> RunCount:
    """Return the counts of several runs together (at least one)."""
    failed: Counter[str] = Counter()
    for run in runs:
        failed.update(run.failed)
    return RunCount(
        asked=sum(run.asked for run in runs),
        answered=sum(run.answered for run in runs),
        failed=dict(sorted(failed.items())),
        unfinished=sum(run.unfinished for run in runs),
        missing_candidates=sum(run.missing_candidates for run in runs),
        asked_is_known=all(run.asked_is_known for run in runs),
        failed_count_as_wrong=runs[0].failed_count_as_wrong,
    )


@dataclass(frozen=True, slots=True)
class SetResult:
    """Everything measured on one set. `provenance` says which run, release and models it comes from."""

    name: str
    n: int
    problems: int
    clusters: int
    mixed: int
    """Problems with right and wrong candidates: only there can a selection matter."""
    left_out: int
    """Problems with fewer than n candidates."""
    undecided: int
    """Answers on which the judge ran out of time; counted as wrong."""
    unscored: int
    """Candidates without a score."""
    pairwise_accuracy: float | None
    pooled_auc: float | None
    curve: tuple[Measured, ...]
    provenance: dict[str, Any]
    run: RunCount | None = None
    """None for given pools."""
    parts: tuple[str, ...] = ()
    """The sets that a group is made of."""

    @property
    def complete(self) -> bool:
        """Whether all of the run is in these numbers."""
        return self.run is None or self.run.complete

    @property
    def headline(self) -> Measured:
        """The metrics at n."""
        return self.curve[-1]

    @property
    def resampled(self) -> str:
        """What the bootstrap draws."""
        return "problems" if self.clusters == self.problems else "templates"

    def document(self) -> dict[str, Any]:
        """Return the result as JSON; metrics under the names they are shown by."""
        document = asdict(self)
        document["resampled"] = self.resampled
        document["complete"] = self.complete
        document["curve"] = [
            {
                "k": point.k,
                "metrics": {label(name, point.k): asdict(value) for name, value in point.metrics.items()},
                "gains": {
                    f"{label('rm', point.k)} - {label(name, point.k)}": asdict(v) for name, v in point.gains.items()
                },
            }
            for point in self.curve
        ]
        return document


def measure_set(
    name: str,
    graded: Sequence[Graded],
    n: int,
    provenance: dict[str, Any],
    *,
    run: RunCount | None = None,
    parts: tuple[str, ...] = (),
    seed: int = 0,
) -> SetResult:
    """Measure one set at n candidates.

    Raises:
        NothingToMeasure: no problem has n candidates.
    """
    problems = [item.problem for item in graded if len(item.problem.candidates) >= n]
    if not problems:
        raise NothingToMeasure(f"{name}: no problem has {n} candidates; take a smaller n")
    everything = [c for problem in problems for c in problem.candidates if c is not MISSING]
    return SetResult(
        name=name,
        n=n,
        problems=len(problems),
        clusters=len({problem.cluster for problem in problems}),
        mixed=sum(problem.is_mixed for problem in problems),
        left_out=len(graded) - len(problems),
        undecided=sum(item.undecided for item in graded),
        unscored=sum(candidate.score is None for candidate in everything),
        pairwise_accuracy=pairwise_accuracy(problems),
        pooled_auc=auc(everything),
        curve=tuple(curve(problems, n, seed=seed)),
        provenance=provenance,
        run=run,
        parts=parts,
    )
