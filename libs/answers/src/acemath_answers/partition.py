"""Split answers into equivalence classes, asking for as few comparisons as possible. Pure bookkeeping: no waiting.

Rule: answers are taken in first-seen order; each joins the first class whose representative (its first member) it
equals, else it opens a class. Comparing with representatives only keeps a chain of nearly equal decimals from
pulling its two ends into one class, and makes the result independent of the order in which workers answer.
A comparison without a verdict counts as "not the same": what is undecided stays a class of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from acemath_answers.compare import Reading, Verdict, compare_readings, read

_MAX_STRIKES = 2


@dataclass(frozen=True, slots=True)
class Question:
    """One comparison that a worker has to make: does `first` have a reading (`second` None), or are they equal?

    Both are positions in the list of answers.
    """

    first: int
    second: int | None = None


class Partition:
    """Classes of one list of answers; drive it with `next_questions` and `record` until there are no questions."""

    def __init__(self, answers: Sequence[str | None]) -> None:
        self._readings: dict[int, Reading] = {i: read(answer) for i, answer in enumerate(answers) if answer is not None}
        self._size = len(answers)
        self._class_of: dict[int, int] = {}
        """Position of an answer → position of its class' representative."""
        self._candidates = self._merge_cheaply()
        """Representatives after the cheap path, in first-seen order."""
        self._cheap = self._undecided_pairs()
        self._strikes: Counter[int] = Counter()
        """Of an answer that spends workers' time-outs; at `_MAX_STRIKES` it is compared no more."""
        self._verdicts: dict[Question, Verdict] = {}
        self._asked: set[Question] = set()

    def next_questions(self) -> list[Question]:
        """Return the questions that may be asked now and were not asked yet; empty while waiting, or when done."""
        questions = [q for q in self._open_questions() if q not in self._asked]
        self._asked.update(questions)
        return questions

    def record(self, question: Question, verdict: Verdict) -> None:
        """Note a worker's verdict on a question."""
        self._verdicts[question] = verdict
        if question.second is None:
            self._strikes[question.first] += 0 if verdict.is_equal else _MAX_STRIKES
        elif verdict in (Verdict.TIMEOUT, Verdict.FAILED):
            self._strikes[question.first] += 1
            self._strikes[question.second] += _MAX_STRIKES

    def classes(self) -> list[int | None]:
        """Return the class number of every answer, numbered in first-seen order; None for None.

        May be called at any time: what is undecided by then is a class of its own.
        """
        merged = self._merge_hard()
        numbers: dict[int, int] = {}
        result: list[int | None] = []
        for i in range(self._size):
            if i not in self._readings:
                result.append(None)
                continue
            cheap = self._class_of[i]
            result.append(numbers.setdefault(merged.get(cheap, cheap), len(numbers)))
        return result

    def _merge_cheaply(self) -> list[int]:
        representatives: list[int] = []
        by_text: dict[tuple[str, bool], int] = {}
        for i, reading in self._readings.items():
            spelling = (reading.text, reading.is_percent)
            known = by_text.get(spelling)
            if known is None:
                known = next((r for r in representatives if self._cheap_verdict(r, i) is Verdict.EQUAL), i)
                by_text[spelling] = known
            if known == i:
                representatives.append(i)
            self._class_of[i] = known
        return representatives

    def _undecided_pairs(self) -> set[tuple[int, int]]:
        pairs = ((r, i) for at, i in enumerate(self._candidates) for r in self._candidates[:at])
        return {pair for pair in pairs if self._cheap_verdict(*pair) is None}

    def _cheap_verdict(self, i: int, j: int) -> Verdict | None:
        return compare_readings(self._readings[i], self._readings[j])

    def _open_questions(self) -> list[Question]:
        hard = sorted({i for pair in self._cheap for i in pair})
        probes = [Question(i) for i in hard]
        if any(probe not in self._verdicts for probe in probes):
            return probes
        merged: dict[int, int] = {}
        for i in hard:
            questions = self._pair_questions(i, merged)
            if any(question not in self._verdicts for question in questions):
                return questions
            self._place(i, questions, merged)
        return []

    def _merge_hard(self) -> dict[int, int]:
        merged: dict[int, int] = {}
        for i in sorted({i for pair in self._cheap for i in pair}):
            self._place(i, self._pair_questions(i, merged), merged)
        return merged

    def _pair_questions(self, i: int, merged: dict[int, int]) -> list[Question]:
        """Return the comparisons of answer i with the earlier representatives that could be its class."""
        if self._strikes[i] >= _MAX_STRIKES:
            return []
        earlier = [r for r in self._candidates if r < i and r not in merged and self._strikes[r] < _MAX_STRIKES]
        return [Question(r, i) for r in earlier if (r, i) in self._cheap]

    def _place(self, i: int, questions: list[Question], merged: dict[int, int]) -> None:
        equal = (q.first for q in questions if self._verdicts.get(q) is Verdict.EQUAL)
        if (representative := next(equal, None)) is not None:
            merged[i] = representative
