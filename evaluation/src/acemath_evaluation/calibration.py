"""What a reward model's scores mean, fitted on graded candidates: a temperature for votes, a probability for a score.

    temperature   T minimises the mean of -log( sum_{i right} e^(s_i/T) / sum_i e^(s_i/T) ) over problems with right
                  and wrong candidates: the share of the vote that the right answer gets, under a proper scoring rule.
                  `T = 1` is what the loss of a Bradley-Terry model asks for; a model may still be too sure or unsure.
    probability   P(right | s) = sigmoid(slope * s + intercept), the maximum likelihood with problems of equal weight
                  (Platt 1999, "Probabilistic outputs for support vector machines"). It compares problems with one
                  another, for which a reward model is not trained: it holds for problems like those of the pool only.

Only candidates with an answer and a score take part: the others have no vote.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from acemath_core.calibration import Calibration
from acemath_evaluation.intervals import Array
from acemath_evaluation.metrics import GradedCandidate, GradedProblem, weighted_vote
from acemath_evaluation.results import NothingToMeasure

TEMPERATURES: Array = np.geomspace(0.05, 20.0, 301)
"""What is tried: steps of 2 %. At either end the scores decide alone, or not at all."""

_STEPS = 100
_RIDGE = 1e-6  # pulls the slope towards 0: candidates that a score separates wholly would let it grow for ever


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration and how it does on problems that it was not fitted on.

    Attributes:
        calibration: fitted on all problems.
        at_one: accuracy of a vote weighted at temperature 1, over all problems.
        at_fitted: the same at a temperature fitted on the other half of the clusters.
    """

    calibration: Calibration
    at_one: float
    at_fitted: float


def calibrate(problems: Sequence[GradedProblem], reward: str) -> Fitted:
    """Fit everything.

    Args:
        problems: graded, with scores of one reward version.
        reward: that version.

    Raises:
        NothingToMeasure: no problem has both a right and a wrong candidate with answer and score.
    """
    slope, intercept = fit_probability(problems)
    mixed = sum(_is_mixed(_voters(problem)) for problem in problems)
    calibration = Calibration(
        reward=reward,
        temperature=fit_temperature(problems),
        slope=slope if slope > 0 else None,
        intercept=intercept if slope > 0 else None,
        problems=mixed,
    )
    return Fitted(calibration, _accuracy(problems, 1.0), _cross_fitted_accuracy(problems))


def fit_temperature(problems: Sequence[GradedProblem]) -> float:
    """The temperature of `TEMPERATURES` under which right answers get the largest share; to three digits.

    Raises:
        NothingToMeasure: no problem has both a right and a wrong candidate with answer and score.
    """
    pools = [voters for problem in problems if _is_mixed(voters := _voters(problem))]
    if not pools:
        raise NothingToMeasure("no problem has right and wrong candidates with answers and scores; sample more of them")
    loss = np.mean([_share_loss(pool) for pool in pools], axis=0)
    return float(f"{TEMPERATURES[int(loss.argmin())]:.3g}")


def fit_probability(problems: Sequence[GradedProblem]) -> tuple[float, float]:
    """Slope and intercept of P(right | score), by Newton's method.

    Raises:
        NothingToMeasure: the candidates are all right or all wrong.
    """
    rows = [(c.score, c.correct, 1 / len(voters)) for p in problems if (voters := _voters(p)) for c in voters]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    score, right, weight = table.T
    if not 0 < right.sum() < len(right):
        raise NothingToMeasure("the candidates are all right or all wrong; calibrate on problems of mixed difficulty")
    design, theta = np.stack([score, np.ones_like(score)], axis=1), np.zeros(2)
    ridge = np.diag([_RIDGE * weight.sum(), 0.0])
    for _ in range(_STEPS):
        guess = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (right - guess)) - ridge @ theta
        curvature = (design.T * (weight * np.maximum(guess * (1 - guess), 1e-9))) @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        theta = theta + step * min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(theta[0]), float(theta[1])


def _share_loss(pool: Sequence[GradedCandidate]) -> Array:
    """-log of the right candidates' share of the softmax, at each of `TEMPERATURES`."""
    scores = np.array([c.score for c in pool], dtype=np.float64)
    right = np.array([c.correct for c in pool])
    exponent = (scores - scores.max())[:, None] / TEMPERATURES
    everything = np.logaddexp.reduce(exponent, axis=0)
    loss: Array = everything - np.logaddexp.reduce(exponent[right], axis=0)
    return loss


def _cross_fitted_accuracy(problems: Sequence[GradedProblem]) -> float:
    """Each half of the clusters is measured at the temperature of the other; a half that gives none counts at 1."""
    halves: tuple[list[GradedProblem], list[GradedProblem]] = ([], [])
    for problem in problems:
        halves[hashlib.sha256(problem.cluster.encode()).digest()[0] % 2].append(problem)
    return math.fsum(
        _accuracy(own, _temperature_or_one(other)) * len(own) / len(problems)
        for own, other in (halves, halves[::-1])
        if own
    )


def _temperature_or_one(problems: Sequence[GradedProblem]) -> float:
    try:
        return fit_temperature(problems)
    except NothingToMeasure:
        return 1.0


def _accuracy(problems: Sequence[GradedProblem], temperature: float) -> float:
    return fmean(weighted_vote(problem.candidates, temperature).correct for problem in problems)


def _voters(problem: GradedProblem) -> list[GradedCandidate]:
    return [c for c in problem.candidates if c.score is not None and c.answer_class is not None]


def _is_mixed(candidates: Sequence[GradedCandidate]) -> bool:
    return len({candidate.correct for candidate in candidates}) == 2
