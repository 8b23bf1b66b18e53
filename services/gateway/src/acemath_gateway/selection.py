r"""Which candidate is the answer: pure functions over scores and classes of equivalent answers.

    best_of_n       the highest score                            argmax_i s_i                    (AceMath, rm@N)
    majority        the commonest answer                         argmax_a |{i : a_i = a}|        (maj@N)
    weighted_vote   the answer with the most weight              argmax_a sum_{i : a_i = a} w_i  (Math-Shepherd, eq. 5)

Why the weights are `softmax(s / T)` over the request: a Bradley-Terry reward model is trained on differences only, so
its logits have no fixed zero. `sigmoid(s)` would let the arbitrary offset decide how much a vote counts against a
score; a softmax is unchanged when every score moves by the same amount. T is 1: under the model
`P(i beats j) = sigmoid(s_i - s_j)`, `exp(s)` is then exactly the strength of a candidate.

Rules for ties, in this order, the same for whoever calls in whichever order:
    between candidates   the higher score, then the lower index;
    between answers      the higher best score of a member, then the lower index of the first member.

A candidate without an answer (class None) never wins a vote while any other has one. A candidate without a score
cannot be the best of N, has no weight in a weighted vote, and counts as one in a majority. No candidate is ever given
an invented score, identical texts included: each keeps what the scorer said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from acemath_core.wire import Selection

TEMPERATURE = 1.0
"""Of the softmax that turns scores into the weights of votes."""


class Candidate(Protocol):
    """What a selection looks at."""

    @property
    def index(self) -> int:
        """The candidate's place; unique within a request."""
        ...

    @property
    def score(self) -> float | None:
        """The raw logit, or None when there is none."""
        ...

    @property
    def answer_class(self) -> int | None:
        """Equal for equivalent answers; None without an answer."""
        ...


C = TypeVar("C", bound=Candidate)
Weight = Callable[[Sequence[Candidate]], float]


def best_of_n(candidates: Sequence[C]) -> C:
    """The candidate with the highest score; the lower index at a tie.

    Raises:
        ValueError: no candidate has a score.
    """
    scored = [c for c in candidates if c.score is not None]
    if not scored:
        raise ValueError("best_of_n needs at least one scored candidate")
    return min(scored, key=_rank)


def majority(candidates: Sequence[C]) -> C:
    """The best candidate of the commonest answer; scores only break ties.

    Raises:
        ValueError: there is no candidate.
    """
    return _vote(candidates, _count(candidates))


def weighted_vote(candidates: Sequence[C], temperature: float = TEMPERATURE) -> C:
    """The best candidate of the answer with the largest sum of `softmax(score / temperature)`.

    Raises:
        ValueError: no candidate has a score.
    """
    return _vote(candidates, _softmax(candidates, temperature))


def weights(selection: Selection, candidates: Sequence[C]) -> dict[int, float]:
    """Class of answers → what it has in a vote; empty where the selection is none."""
    weight = _WEIGHTS[selection](candidates) if selection in _WEIGHTS else None
    return {} if weight is None else {one: weight(members) for one, members in _by_class(candidates).items()}


def select(selection: Selection, candidates: Sequence[C]) -> C:
    """The candidate that `selection` chooses.

    Raises:
        ValueError: there is no candidate that it could choose.
    """
    chooser: dict[Selection, Callable[[Sequence[C]], C]] = {
        Selection.BEST_OF_N: best_of_n,
        Selection.MAJORITY: majority,
        Selection.WEIGHTED_VOTE: weighted_vote,
    }
    return chooser[selection](candidates)


def margin(candidates: Sequence[Candidate]) -> float | None:
    """How far the highest score lies above the second highest; None with fewer than two scores."""
    scores = sorted((c.score for c in candidates if c.score is not None), reverse=True)
    return scores[0] - scores[1] if len(scores) > 1 else None


def _vote(candidates: Sequence[C], weight: Weight) -> C:
    if not candidates:
        raise ValueError("a vote needs at least one candidate")
    classes = _by_class(candidates)
    if not classes:
        return min(candidates, key=_rank)
    winner = min(classes.values(), key=lambda members: (-weight(members), _best(members), _first(members)))
    return min(winner, key=_rank)


def _by_class(candidates: Sequence[C]) -> dict[int, list[C]]:
    classes: dict[int, list[C]] = {}
    for candidate in candidates:
        if candidate.answer_class is not None:
            classes.setdefault(candidate.answer_class, []).append(candidate)
    return classes


def _count(_: Sequence[Candidate]) -> Weight:
    return lambda members: float(len(members))


def _softmax(candidates: Sequence[Candidate], temperature: float = TEMPERATURE) -> Weight:
    scores = [c.score for c in candidates if c.score is not None]
    if not scores:
        raise ValueError("weighted_vote needs at least one scored candidate")
    top = max(scores)
    # fsum is exact before its one rounding, so the order of the members cannot change the winner.
    return lambda members: math.fsum(math.exp((c.score - top) / temperature) for c in members if c.score is not None)


_WEIGHTS: dict[Selection, Callable[[Sequence[Candidate]], Weight]] = {
    Selection.MAJORITY: _count,
    Selection.WEIGHTED_VOTE: _softmax,
}


def _rank(candidate: Candidate) -> tuple[float, int]:
    return (_descending(candidate.score), candidate.index)


def _best(members: Sequence[Candidate]) -> float:
    return min(_descending(member.score) for member in members)


def _first(members: Sequence[Candidate]) -> int:
    return min(member.index for member in members)


def _descending(score: float | None) -> float:
    return math.inf if score is None else -score
