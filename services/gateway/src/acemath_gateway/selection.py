r"""Which candidate is the answer: pure functions over scores and classes of equivalent answers.

    best_of_n         the highest score                          argmax_i s_i                    (AceMath, rm@N)
    majority          the commonest answer                       argmax_a |{i : a_i = a}|        (maj@N)
    weighted_vote     the answer with the most weight            argmax_a sum_{i : a_i = a} w_i  (Math-Shepherd, eq. 5)
    best_of_majority  the highest score among frequent answers   argmax_{i : f(a_i) >= g} s_i    (Di et al. 2025)

Why the weights are `softmax(s / T)` over the request: a Bradley-Terry reward model is trained on differences only, so
its logits have no fixed zero. `sigmoid(s)` would let the arbitrary offset decide how much a vote counts against a
score; a softmax is unchanged when every score moves by the same amount. T is 1 unless the reward version was
calibrated: under the model `P(i beats j) = sigmoid(s_i - s_j)`, `exp(s)` is then exactly the strength of a candidate.
`acemath eval calibrate` fits T for a version that is surer or less sure than its scores say.

The gate of `best_of_majority` (Di et al., "Best-of-Majority", arXiv 2510.03199): an answer passes with at least the
share `GATE` of all candidates, those without an answer counted; where no answer reaches it, with as many votes as the
commonest. A gate of 1 is therefore a majority whose ties scores break, a gate of 0 the best of the N that have an
answer. The paper keeps answers with 1.5 % of N = 500; with N up to 64 that keeps every answer, hence a larger share.

Rules for ties, in this order, the same for whoever calls in whichever order:
    between candidates   the higher score, then the lower index;
    between answers      the higher best score of a member, then the lower index of the first member.

A candidate without an answer (class None) never wins a vote while any other has one. A candidate without a score
cannot be the best of N, has no weight in a weighted vote, and counts as one in a majority and towards the gate; an
answer none of whose candidates has a score passes the gate only where that is true of every answer. No candidate is
ever given an invented score, identical texts included: each keeps what the scorer said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from acemath_core.calibration import Calibration
from acemath_core.wire import Selection

TEMPERATURE = 1.0
"""Of the softmax that turns scores into the weights of votes, where no calibration says otherwise."""

GATE = 0.25
"""Share of the candidates with which an answer is frequent: two votes of 8, four of 16."""


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
Overturns = Callable[[Collection[int]], bool]


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


def best_of_majority(candidates: Sequence[C], gate: float = GATE) -> C:
    """The candidate with the highest score among the answers that have at least `gate` of the candidates.

    Raises:
        ValueError: no candidate has a score.
    """
    if all(c.score is None for c in candidates):
        raise ValueError("best_of_majority needs at least one scored candidate")
    classes = _by_class(candidates)
    if not classes:
        return best_of_n(candidates)
    eligible = [m for m in classes.values() if _is_scored(m)] or list(classes.values())
    votes = min(gate * len(candidates), max(map(len, eligible)))
    return min((c for members in eligible if len(members) >= votes for c in members), key=_rank)


def temperature_of(calibration: Calibration | None) -> float:
    """The temperature of votes with scores that were calibrated so, or were not."""
    return TEMPERATURE if calibration is None else calibration.temperature


def rivals(
    selection: Selection, candidates: Sequence[C], winner: int | None, temperature: float = TEMPERATURE
) -> Overturns:
    """Whether some losing classes, were they one answer, could take the victory of class `winner` or tie with it.

    Where there is none, and for a selection that looks at no answers, it is never so. More classes never overturn less.
    """
    if selection is Selection.BEST_OF_N or winner is None:
        return lambda _: False
    classes = _by_class(candidates)
    if selection is Selection.BEST_OF_MAJORITY:
        return _overturns_gate(classes, winner, GATE * len(candidates))
    weight = _count(candidates) if selection is Selection.MAJORITY else _softmax(candidates, temperature)
    return lambda group: math.fsum(weight(classes[one]) for one in group) >= weight(classes[winner])


def select(selection: Selection, candidates: Sequence[C], temperature: float = TEMPERATURE) -> C:
    """The candidate that `selection` chooses; `temperature` is of weighted votes.

    Raises:
        ValueError: there is no candidate that it could choose.
    """
    if selection is Selection.WEIGHTED_VOTE:
        return weighted_vote(candidates, temperature)
    chooser: dict[Selection, Callable[[Sequence[C]], C]] = {
        Selection.BEST_OF_N: best_of_n,
        Selection.MAJORITY: majority,
        Selection.BEST_OF_MAJORITY: best_of_majority,
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


def _overturns_gate(classes: Mapping[int, Sequence[Candidate]], winner: int, needed: float) -> Overturns:
    own, best = len(classes[winner]), _best(classes[winner])

    def overturns(group: Collection[int]) -> bool:
        votes = sum(len(classes[one]) for one in group)
        theirs = min((_best(classes[one]) for one in group), default=math.inf)
        if votes > own and own < needed:  # then another answer is the commonest, if it may be chosen at all
            return theirs < math.inf or best == math.inf
        return votes >= min(needed, own) and theirs <= best

    return overturns


def _is_scored(members: Sequence[Candidate]) -> bool:
    return any(member.score is not None for member in members)


def _count(_: Sequence[Candidate]) -> Weight:
    return lambda members: float(len(members))


def _softmax(candidates: Sequence[Candidate], temperature: float = TEMPERATURE) -> Weight:
    scores = [c.score for c in candidates if c.score is not None]
    if not scores:
        raise ValueError("weighted_vote needs at least one scored candidate")
    top = max(scores)
    # fsum is exact before its one rounding, so the order of the members cannot change the winner.
    return lambda members: math.fsum(math.exp((c.score - top) / temperature) for c in members if c.score is not None)


def _rank(candidate: Candidate) -> tuple[float, int]:
    return (_descending(candidate.score), candidate.index)


def _best(members: Sequence[Candidate]) -> float:
    return min(_descending(member.score) for member in members)


def _first(members: Sequence[Candidate]) -> int:
    return min(member.index for member in members)


def _descending(score: float | None) -> float:
    return math.inf if score is None else -score
