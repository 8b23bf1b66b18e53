"""The metrics, all on the same candidates of a problem.

    pass@1         mean correctness of a candidate
    majority@k     the commonest answer
    weighted@k     the answer with the largest sum of softmax(score), at temperature 1
    rm@k           the candidate with the highest score
    pass@k         whether any candidate is right: what a perfect selection would reach
    random@k       a uniformly random choice, `RANDOM_PICKS` of them: must agree with pass@1
    shortest@k, longest@k     the choice by length alone: what a reward model must beat to be one

Ties are broken as the gateway breaks them (the rule is written down in `acemath_gateway.selection`, and a test holds
the two together): by the best score, then by what was seen first. A vote's answer is judged by its best member. A
candidate without an answer does not vote; one without a score is never the best. One that was asked for and never
came is wrong (`MISSING`); so are all of a problem that failed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

RANDOM_PICKS = 100


@dataclass(frozen=True, slots=True)
class GradedCandidate:
    """A candidate as the metrics see it."""

    correct: bool
    score: float | None
    answer_class: int | None
    length: int | None
    """In tokens, or in characters where tokens are not known; None if it was asked for and never came."""


MISSING = GradedCandidate(correct=False, score=None, answer_class=None, length=None)
"""Stands for a candidate that was asked for and never came: wrong, and chosen only where there is no other."""


@dataclass(frozen=True, slots=True)
class GradedProblem:
    """A problem with its graded candidates, in the order in which they were sampled."""

    id: str
    cluster: str
    candidates: tuple[GradedCandidate, ...]

    @property
    def is_mixed(self) -> bool:
        """Whether there are right and wrong candidates: only then can selection matter. Missing ones are neither."""
        return len({candidate.correct for candidate in self.candidates if candidate is not MISSING}) == 2


Choice = Callable[[Sequence[GradedCandidate]], GradedCandidate]


def best_score(candidates: Sequence[GradedCandidate]) -> GradedCandidate:
    """Return the candidate with the highest score, the first of equals; the first one if none has a score."""
    return max(candidates, key=_score)


def majority(candidates: Sequence[GradedCandidate]) -> GradedCandidate:
    """Return the best member of the commonest answer; scores only break ties."""
    return _vote(candidates, len)


def weighted_vote(candidates: Sequence[GradedCandidate], temperature: float = 1.0) -> GradedCandidate:
    """Return the best member of the answer with the largest sum of softmax(score / temperature)."""
    top = max(map(_score, candidates))

    def weight(members: Sequence[GradedCandidate]) -> float:
        return math.fsum(math.exp((m.score - top) / temperature) for m in members if m.score is not None)

    return _vote(candidates, weight)


def shortest(candidates: Sequence[GradedCandidate]) -> GradedCandidate:
    """Return the shortest candidate, the first of equals."""
    return min(candidates, key=lambda candidate: math.inf if candidate.length is None else candidate.length)


def longest(candidates: Sequence[GradedCandidate]) -> GradedCandidate:
    """Return the longest candidate, the first of equals."""
    return max(candidates, key=lambda candidate: -1 if candidate.length is None else candidate.length)


CHOICES: Mapping[str, Choice] = {
    "majority": majority,
    "weighted": weighted_vote,
    "rm": best_score,
    "shortest": shortest,
    "longest": longest,
}
METRICS = ("pass@1", "majority", "weighted", "rm", "pass@k", "random", "shortest", "longest")
"""Column order everywhere; all but pass@1 are read "at k"."""
CONTROLS = ("pass@1", "random", "shortest", "longest", "majority", "weighted")
"""What rm@k is compared with, pairwise on the same draws."""


def label(metric: str, k: int) -> str:
    """Return the name under which a metric is shown, e.g. `rm@8`."""
    return metric if metric == "pass@1" else f"{metric.removesuffix('@k')}@{k}"


def values(candidates: Sequence[GradedCandidate], rng: random.Random) -> list[float]:
    """Return the value of each of `METRICS`, in that order, on one draw of candidates (at least one)."""
    chosen = {name: float(choose(candidates).correct) for name, choose in CHOICES.items()}
    picks = rng.choices(candidates, k=RANDOM_PICKS)
    chosen["pass@1"] = fmean(candidate.correct for candidate in candidates)
    chosen["pass@k"] = float(any(candidate.correct for candidate in candidates))
    chosen["random"] = fmean(pick.correct for pick in picks)
    return [chosen[name] for name in METRICS]


def pairwise_accuracy(problems: Sequence[GradedProblem]) -> float | None:
    """Return the AUC within problems: how often a right candidate scores above a wrong one of the same problem.

    Mean over problems with both, ties counting a half; None if there is no such problem.
    """
    accuracies = [accuracy for p in problems if (accuracy := auc(p.candidates)) is not None]
    return fmean(accuracies) if accuracies else None


def auc(candidates: Sequence[GradedCandidate]) -> float | None:
    """Return the Mann-Whitney estimate of P(right scores above wrong), ties a half; None without both kinds."""
    scored = sorted((c.score, c.correct) for c in candidates if c.score is not None)
    right = sum(correct for _, correct in scored)
    wrong = len(scored) - right
    if not right or not wrong:
        return None
    wins, start, wrong_below = 0.0, 0, 0
    while start < len(scored):
        end = start
        while end < len(scored) and scored[end][0] == scored[start][0]:
            end += 1
        tied_right = sum(correct for _, correct in scored[start:end])
        tied_wrong = end - start - tied_right
        wins += tied_right * (wrong_below + tied_wrong / 2)
        wrong_below += tied_wrong
        start = end
    return wins / (right * wrong)


def _score(candidate: GradedCandidate) -> float:
    return -math.inf if candidate.score is None else candidate.score


def _vote(
    candidates: Sequence[GradedCandidate], weight: Callable[[Sequence[GradedCandidate]], float]
) -> GradedCandidate:
    classes: dict[int, list[GradedCandidate]] = {}
    for candidate in candidates:
        if candidate.answer_class is not None:
            classes.setdefault(candidate.answer_class, []).append(candidate)
    winner = max(classes.values(), key=lambda members: (weight(members), max(map(_score, members))), default=candidates)
    return best_score(winner)
