"""What the score of a beginning tells of the whole: order, correctness, and who would be stopped, by T."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from acemath_evaluation.intervals import bootstrap
from acemath_evaluation.metrics import GradedCandidate, auc
from bench.early_reject.rule import EarlyReject
from bench.early_reject.ways import KEEPS
from bench.recorded.figures import as_json
from bench.recorded.pools import Recorded, RecordedSet

Pool = Sequence[Recorded]
Between = tuple[float, float]
_SHARE: Between = (0.0, 1.0)
_FEWEST = 5
"""Clusters that must have an answer, or there is no figure."""


def described(sets: Sequence[RecordedSet], cut: int, resamples: int) -> dict[str, Any]:
    """Figures at one T over the first n candidates of each problem; a candidate `goes on` that has more than T."""
    pools = [pool[: one.n] for one in sets for pool in one.problems]
    clusters = [cluster for one in sets for cluster in one.clusters]
    ask = _Asked(pools, clusters, resamples)
    tokens = sum(c.cost for pool in pools for c in pool)
    behind = sum(max(0, c.cost - cut) for pool in pools for c in pool)
    return {
        "after_tokens": cut,
        "tokens_behind": behind / tokens,
        "go_on": ask(lambda pool: len(_going_on(pool, cut)) / len(pool)),
        "tau": ask(lambda pool: tau([(c.drafts[cut], _score(c)) for c in _going_on(pool, cut)]), (-1.0, 1.0)),
        "auc_draft": ask(lambda pool: auc([_graded(c, c.drafts[cut]) for c in _going_on(pool, cut)])),
        "auc_whole": ask(lambda pool: auc([_graded(c, _score(c)) for c in _going_on(pool, cut)])),
        "shift": ask(lambda pool: _mean([c.drafts[cut] - _score(c) for c in _going_on(pool, cut)]), None),
        "stopped": {str(keep): _stopped(ask, EarlyReject(cut, keep)) for keep in KEEPS},
    }


def _stopped(ask: _Asked, rule: EarlyReject) -> dict[str, Any]:
    """Shares of all candidates of a problem, of its right ones, and how often the best one, which are stopped."""

    def share(pool: Pool, of: Callable[[Recorded], bool]) -> float | None:
        lost = rule(pool)
        return _mean([float(c.index in lost) for c in pool if of(c)])

    return {
        "all": ask(lambda pool: share(pool, lambda _: True)),
        "right": ask(lambda pool: share(pool, lambda c: c.correct)),
        "wrong": ask(lambda pool: share(pool, lambda c: not c.correct)),
        "best": ask(lambda pool: float(min(pool, key=lambda c: (-_score(c), c.index)).index in rule(pool))),
    }


def tau(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's tau-b of two scores of the same candidates; None where either does not tell any two apart."""
    together = ties_first = ties_second = total = 0
    for (a, b), (c, d) in itertools.combinations(pairs, 2):
        first, second = _sign(a - c), _sign(b - d)
        together += first * second
        ties_first += first == 0
        ties_second += second == 0
        total += 1
    scale = math.sqrt((total - ties_first) * (total - ties_second))
    return together / scale if scale else None


class _Asked:
    """Means over the problems that have an answer to a question, with intervals."""

    def __init__(self, pools: Sequence[Pool], clusters: Sequence[str], resamples: int) -> None:
        self._pools, self._clusters, self._resamples = pools, clusters, resamples

    def __call__(
        self, question: Callable[[Pool], float | None], between: Between | None = _SHARE
    ) -> dict[str, float] | None:
        answers = [(question(pool), cluster) for pool, cluster in zip(self._pools, self._clusters, strict=True)]
        known = [(answer, cluster) for answer, cluster in answers if answer is not None]
        clusters = [cluster for _, cluster in known]
        if len(set(clusters)) < _FEWEST:
            return None
        values = np.array([[answer] for answer, _ in known])
        low, high = between or (float(values.min()), float(values.max()))
        limits = ([low], [high])
        (estimate,) = bootstrap(values, clusters, resamples=self._resamples, limits=limits)
        return as_json(estimate) | {"problems": len(known)}


def _going_on(pool: Pool, cut: int) -> list[Recorded]:
    return [c for c in pool if c.cost > cut]


def _graded(candidate: Recorded, score: float) -> GradedCandidate:
    return GradedCandidate(candidate.correct, score, candidate.answer_class, candidate.cost)


def _score(candidate: Recorded) -> float:
    return -math.inf if candidate.score is None else candidate.score


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
