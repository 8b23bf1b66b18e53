"""Find the final answer in a solution, and decide whether two answers are the same.

Extraction (`extract`) and the cheap comparison (`compare`) are pure functions in linear time. Everything that
needs computer algebra runs in worker processes that can be killed (`pool`), behind `AnswerJudge`.
"""

from acemath_answers.compare import Verdict, compare_cheaply
from acemath_answers.extract import ends_in_box, extract_answer, extract_boxed, extract_choice
from acemath_answers.judge import AnswerJudge
from acemath_answers.normalise import MAX_ANSWER_CHARS, NormalisedAnswer, normalise
from acemath_answers.pool import WorkerLimits, WorkerPool

__all__ = [
    "MAX_ANSWER_CHARS",
    "AnswerJudge",
    "NormalisedAnswer",
    "Verdict",
    "WorkerLimits",
    "WorkerPool",
    "compare_cheaply",
    "ends_in_box",
    "extract_answer",
    "extract_boxed",
    "extract_choice",
    "normalise",
]
