r"""When is the answer of an adaptive job settled? Pure functions over the candidates that are there.

| reason          | the rule                                                                         | promises |
|-----------------|----------------------------------------------------------------------------------|----------|
| `cannot_change` | whatever the candidates still to come answer, the choice gives the same answer   | exact    |
| `agreement`     | P(the commonest of all n is the commonest so far) >= confidence, and is chosen   | a bet    |
| `score`         | P(the chosen candidate is right, by its score) >= confidence                     | a bet    |

`agreement` asks what the candidates still to come can change (`overtaking`): the closer the end, the smaller a lead is
enough. The Beta rule of Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860), whose place it took, asks for
the leader of endlessly many candidates. Each look is taken as the only one, so the confidence is per look. For a
selection by score it is asked besides that the candidate which would be chosen now gives the leading answer; a later
candidate might still outscore it with another one, which no count of answers can rule out.

The bets are asked for only when a wave has ended: the candidates that end first are the short ones, which agree with
one another more often than all do (`docs/adaptive.md` has the figures). What cannot change may be asked at any time.

`cannot_change`, with r candidates to come and v2 = 0 while there is no second answer:
    majority          v1 > v2 + r: a tie could be broken by a score, so it does not count as settled;
    best_of_majority  v1 >= g (m + r) and v2 + r < g (m + r), m candidates so far and g the gate: the leader is the only
                      answer that can pass, however many of the r fail;
    best_of_n, weighted_vote  never: a score to come has no upper bound, so counts alone prove nothing.
It is the answer that cannot change: a later candidate with the same answer and a higher score would be shown instead.

`score` needs a calibration of the reward version (`acemath eval calibrate`) and is off without; a majority does not ask
for scores, so it is never used there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from acemath_core.calibration import Calibration
from acemath_core.wire import Selection, StopReason
from acemath_gateway.overtaking import stays_ahead
from acemath_gateway.selection import GATE, Candidate, select, temperature_of

FIRST_WAVE = 4
"""Candidates of the first wave: three that agree are not enough at 0.95 where thirteen are to come, four are."""

CONFIDENCE = 0.9
"""With which a bet is taken."""


@dataclass(frozen=True, slots=True)
class StopRules:
    """How sure to be.

    Attributes:
        confidence: of `agreement` and `score`, above 1/2 and below 1.
        calibration: of the reward version that gives the scores; None switches `score` off.
        at_least: candidates below which nothing is settled: as many as the caller wants to see.
    """

    confidence: float = CONFIDENCE
    calibration: Calibration | None = None
    at_least: int = 1


def wave_sizes(n: int, first: int = FIRST_WAVE) -> list[int]:
    """Candidates of each wave: `first`, then each time a third of those there are, two at least; n together.

    So n = 16 is 4, 2, 2, 2, 3, 3, and 64 candidates are eleven waves. Each look can settle it: small waves make few
    candidates too many, and growing ones keep their number, each of which takes its time, small.
    """
    sizes = [min(first, n)]
    while (made := sum(sizes)) < n:
        sizes.append(min(max(2, made // 3), n - made))
    return sizes


def settled(
    rules: StopRules, selection: Selection, candidates: Sequence[Candidate], remaining: int
) -> StopReason | None:
    """Why the answer is settled by the candidates of whole waves, or None while it is not.

    Args:
        rules: how sure to be.
        selection: how the answer will be chosen.
        candidates: the finished ones, with their scores and classes of answers.
        remaining: candidates that may still come.
    """
    if remaining <= 0 or len(candidates) < max(1, rules.at_least) or not _can_choose(selection, candidates):
        return None
    if cannot_change(selection, candidates, remaining):
        return StopReason.CANNOT_CHANGE
    chosen = select(selection, candidates, temperature_of(rules.calibration))
    votes = _votes(candidates)
    if stays_ahead([*votes.values()], len(candidates), remaining) >= rules.confidence and _leads(chosen, votes):
        return StopReason.AGREEMENT
    return StopReason.SCORE if _is_probably_right(rules, selection, chosen) else None


def cannot_change(selection: Selection, candidates: Sequence[Candidate], remaining: int) -> bool:
    """Whether the answer stays the same whatever the candidates that may still come say."""
    if not may_be_certain(selection, len(candidates), remaining) or not _can_choose(selection, candidates):
        return False
    votes = _votes(candidates)
    first, second = (*sorted(votes.values(), reverse=True), 0, 0)[:2]
    if selection is Selection.MAJORITY:
        return first > second + remaining
    needed = GATE * (len(candidates) + remaining)
    return first >= needed > second + remaining and _leads(select(selection, candidates), votes)


def may_be_certain(selection: Selection, finished: int, remaining: int) -> bool:
    """Whether `cannot_change` could hold with so many candidates, did they all agree: answers need not be compared."""
    if selection is Selection.MAJORITY:
        return finished > remaining
    return selection is Selection.BEST_OF_MAJORITY and finished >= GATE * (finished + remaining) > remaining


def _votes(candidates: Sequence[Candidate]) -> Counter[int]:
    return Counter(c.answer_class for c in candidates if c.answer_class is not None)


def _leads(chosen: Candidate, votes: Counter[int]) -> bool:
    """Whether the candidate gives an answer with the most votes; where that is asked, no other has as many."""
    return chosen.answer_class is not None and votes[chosen.answer_class] == max(votes.values())


def _is_probably_right(rules: StopRules, selection: Selection, chosen: Candidate) -> bool:
    if rules.calibration is None or selection is Selection.MAJORITY:
        return False
    if chosen.score is None or chosen.answer_class is None:
        return False
    probability = rules.calibration.probability(chosen.score)
    return probability is not None and probability >= rules.confidence


def _can_choose(selection: Selection, candidates: Sequence[Candidate]) -> bool:
    return selection is Selection.MAJORITY or any(c.score is not None for c in candidates)
