"""Say of every candidate whether its final answer is right and which others give the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acemath_answers import AnswerJudge, Verdict, extract_answer, extract_choice
from acemath_evaluation.metrics import MISSING, GradedCandidate, GradedProblem
from acemath_evaluation.rows import Pool

COMPARISON_SECONDS = 10.0
"""For one comparison: no one waits for an answer here, and a busy machine must not turn into wrong candidates."""

_DEADLINE_S = 120.0
_LETTERS = frozenset("ABCDE")


@dataclass(frozen=True, slots=True)
class Graded:
    """A graded problem, and how many of its answers the judge could not decide on in time (they count as wrong)."""

    problem: GradedProblem
    undecided: int = 0


def grade_draws(record: dict[str, Any], n: int, judge: AnswerJudge) -> Graded:
    """Grade one record of a sampling journal that was asked for n candidates; those that never came are `MISSING`.

    One comparison with the reference for each class of equal answers.
    """
    candidates = record["candidates"]
    answers = extract([candidate["text"] or "" for candidate in candidates], record["answer"])
    classes = judge.classes(answers, deadline_s=_DEADLINE_S)
    verdicts: dict[int, Verdict] = {}
    for answer, number in zip(answers, classes, strict=True):
        if number is not None and answer is not None and number not in verdicts:
            verdicts[number] = judge.equivalent(answer, record["answer"], deadline_s=_DEADLINE_S)
    graded = tuple(
        GradedCandidate(
            correct=number is not None and verdicts[number].is_equal,
            score=candidate["score"],
            answer_class=number,
            length=candidate["completion_tokens"],
        )
        for candidate, number in zip(candidates, classes, strict=True)
    )
    undecided = sum(not verdict.is_final for verdict in verdicts.values())
    missing = (MISSING,) * (n - len(graded))
    return Graded(GradedProblem(record["id"], record["cluster"], graded + missing), undecided)


def failed_problem(name: str, cluster: str, n: int) -> Graded:
    """Return a problem none of whose n candidates ever came."""
    return Graded(GradedProblem(name, cluster, (MISSING,) * n))


def grade_pool(pool: Pool, scores: Sequence[float | None], judge: AnswerJudge) -> Graded:
    """Join a pool's own labels with scores; only the classes of equal answers are worked out here."""
    classes = judge.classes(
        extract([candidate.text for candidate in pool.candidates], pool.answer), deadline_s=_DEADLINE_S
    )
    graded = tuple(
        GradedCandidate(candidate.correct, score, number, len(candidate.text))
        for candidate, score, number in zip(pool.candidates, scores, classes, strict=True)
    )
    return Graded(GradedProblem(pool.id, pool.cluster, graded))


def extract(texts: Sequence[str], reference: str | None) -> list[str | None]:
    """Return the final answers; a reference that is a letter A to E makes it a multiple-choice problem."""
    is_choice = reference is not None and reference.strip().strip("()") in _LETTERS
    return [(extract_choice if is_choice else extract_answer)(text) for text in texts]
