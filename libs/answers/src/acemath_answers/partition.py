"""Split answers into equivalence classes, asking for as few comparisons as possible. Pure bookkeeping: no waiting.

Rule: answers are taken in first-seen order; each joins the first class whose representative (its first member) it
equals, else it opens a class. Comparing with representatives only keeps a chain of nearly equal decimals from
pulling its two ends into one class, and makes the result independent of the order in which workers answer.
A comparison without a verdict counts as "not the same": what is undecided stays a class of its own.

One slow answer must not break up the class of the others: which of two answers a time-out is the fault of is not
known, so both get a strike, and only one with `_MAX_STRIKES` is compared no more. Where a comparison with the
representative is undecided, the next member speaks for the class; an answer that equals two classes between which
nothing was decided joins them. A recorded EQUAL is never dropped. Each pair is asked about at most once, and of n
answers at most n comparisons, each striking two, can time out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from acemath_answers.compare import Reading, Verdict, compare_readings, read

_MAX_STRIKES = 2
_UNDECIDED = (Verdict.TIMEOUT, Verdict.FAILED)


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
        """Of an answer in comparisons that timed out; at `_MAX_STRIKES` it is compared no more."""
        self._verdicts: dict[Question, Verdict] = {}
        self._asked: set[Question] = set()
        self._hard = sorted({i for pair in self._cheap for i in pair})
        self._placed = 0
        """How many of the hard answers are in a class of `_classes`; the next one is being compared."""
        self._classes: dict[int, list[int]] = {}
        """Representative → members, both in first-seen order."""

    def next_questions(self) -> list[Question]:
        """Return the questions that may be asked now and were not asked yet; empty while waiting, or when done."""
        open_now = [probe for probe in map(Question, self._hard) if probe not in self._verdicts]
        room = len(open_now)
        while not open_now and self._placed < len(self._hard):
            current = self._hard[self._placed]
            if open_now := self._open_questions(current):
                # So many at once that it cannot be struck more often than it takes to leave it alone.
                room = _MAX_STRIKES - self._strikes[current] - sum(q in self._asked for q in open_now)
            else:
                self._place(current, self._classes)
                self._placed += 1
        questions = [q for q in open_now if q not in self._asked][: max(0, room)]
        self._asked.update(questions)
        return questions

    def record(self, question: Question, verdict: Verdict) -> None:
        """Note a worker's verdict on a question."""
        self._verdicts[question] = verdict
        if question.second is None:
            self._strikes[question.first] += 0 if verdict.is_equal else _MAX_STRIKES
        elif verdict in _UNDECIDED:
            self._strikes[question.first] += 1
            self._strikes[question.second] += 1

    def classes(self) -> list[int | None]:
        """Return the class number of every answer, numbered in first-seen order; None for None.

        May be called at any time: what is undecided by then is a class of its own.
        """
        merged = self._representatives()
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

    def _representatives(self) -> dict[int, int]:
        """Return the representative of every hard answer placed so far, the one in progress included."""
        classes = {r: list(members) for r, members in self._classes.items()}
        if self._placed < len(self._hard):
            self._place(self._hard[self._placed], classes)
        return {i: r for r, members in classes.items() for i in members}

    def _open_questions(self, i: int) -> list[Question]:
        """Return what has to be known before answer i can be placed, asked already or not."""
        questions: list[Question] = []
        home: int | None = None
        for r, members in self._classes.items():
            if home is not None and self._are_apart(home, r):
                continue
            link = self._link(members, i)
            if isinstance(link, Question):
                questions.append(link)
            elif link.is_equal and home is None:
                home = r
        return questions

    def _place(self, i: int, classes: dict[int, list[int]]) -> None:
        equal = [r for r, members in classes.items() if self._link(members, i) is Verdict.EQUAL]
        if not equal:
            classes[i] = [i]
            return
        home, *others = equal
        classes[home].append(i)
        for other in others:
            if not self._are_apart(home, other):
                classes[home] = sorted(classes[home] + classes.pop(other))

    def _are_apart(self, home: int, other: int) -> bool:
        """Whether two classes were found different; a comparison that timed out does not say so."""
        link = self._link(self._classes.get(home, [home]), other)
        return isinstance(link, Verdict) and link not in (Verdict.EQUAL, *_UNDECIDED, Verdict.OVERLOADED)

    def _link(self, members: list[int], i: int) -> Question | Verdict:
        """Return what the first member that can speak for a class says about answer i, or what to ask to know it."""
        for member in members:
            question = Question(min(member, i), max(member, i))
            if (question.first, question.second) not in self._cheap:
                return Verdict.DIFFERENT
            verdict = self._verdicts.get(question)
            if verdict is None and (question in self._asked or self._may_ask(member, i)):
                return question
            if verdict is not None and verdict not in _UNDECIDED:
                return verdict
        return Verdict.TIMEOUT

    def _may_ask(self, *pair: int) -> bool:
        return all(self._strikes[i] < _MAX_STRIKES for i in pair)
