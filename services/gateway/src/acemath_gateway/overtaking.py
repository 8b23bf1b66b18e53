r"""Will the answer that leads the votes still lead when all candidates are there? A posterior predictive, exactly.

The candidates still to come are drawn from an urn with the votes so far: the next one repeats an answer that v of the m
candidates gave with probability v / (m + 1), gives one that nobody has given yet with 1 / (m + 1), and has no answer as
often as those so far; then it is a vote itself (Blackwell and MacQueen 1973, Hoppe 1984: a Dirichlet process of
concentration 1). Of a leader with L votes and a rival with R, the r candidates to come give both together T and the
rival Y of those, and both are beta-binomial:

    T ~ BetaBinomial(r; L + R, m + 1 - L - R)        Y | T ~ BetaBinomial(T; R, L)

The rival is ahead in the end when R + Y > L + T - Y. An equal count is half of that: scores break the tie, and of whose
answer they are for nothing is known here. All answers that nobody has given yet count as one rival with the 1 of the
urn: together they overtake at least as often as apart. The probabilities of the rivals are added up, which is no less
than that of their union, so `stays_ahead` is never too high for the urn.

Where no r votes could change the leader it is 1: what a majority calls `cannot_change` is the limit of this rule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

UNSEEN = 1
"""Weight in the urn of all answers that nobody has given yet: of one candidate."""


def stays_ahead(votes: Sequence[int], made: int, remaining: int) -> float:
    """P(the answer with the most votes has the most in the end), at least; 0 where two share the lead.

    Args:
        votes: of each answer, in any order; each at least 1.
        made: candidates so far, those without an answer too: at least the votes together.
        remaining: candidates that may still come.
    """
    if not votes:
        return 0.0
    lead, *rivals = sorted(votes, reverse=True)
    if lead in rivals:
        return 0.0
    lost = sum(times * overtakes(lead, rival, rival, made, remaining) for rival, times in Counter(rivals).items())
    return max(0.0, 1.0 - lost - overtakes(lead, 0, UNSEEN, made, remaining))


@lru_cache(maxsize=1 << 14)
def overtakes(lead: int, votes: int, weight: int, made: int, remaining: int) -> float:
    """P(a rival has more votes than the leader in the end) + P(as many) / 2.

    Args:
        lead: votes of the leader.
        votes: of the rival, at most `lead`.
        weight: of the rival in the urn: its votes, or `UNSEEN`.
        made: candidates so far.
        remaining: candidates that may still come.
    """
    gap, rest = lead - votes, made + UNSEEN - lead - weight
    return sum(
        _share(both, remaining, lead + weight, rest) * _ahead(both, gap, weight, lead)
        for both in range(gap, remaining + 1)
    )


def _ahead(draws: int, gap: int, rival: int, lead: int) -> float:
    """P(2 Y > draws + gap) + P(2 Y = draws + gap) / 2 for Y ~ BetaBinomial(draws; rival, lead)."""
    least = (draws + gap + 1) // 2
    share = _share(least, draws, rival, lead)
    total = -share / 2 if 2 * least == draws + gap else 0.0
    for won in range(least, draws):
        total += share
        share *= (draws - won) * (rival + won) / ((won + 1) * (lead + draws - won - 1))
    return total + share


def _share(won: int, draws: int, own: int, others: int) -> float:
    """P(won) of BetaBinomial(draws; own, others): a Polya urn with `own` balls of one kind and `others` of the rest."""
    if not others:
        return float(won == draws)
    return math.exp(
        _rising(own, won)
        + _rising(others, draws - won)
        - _rising(own + others, draws)
        + math.log(math.comb(draws, won))
    )


def _rising(base: int, steps: int) -> float:
    """log(base (base + 1) ... (base + steps - 1))."""
    return math.lgamma(base + steps) - math.lgamma(base)
