r"""Which unfinished candidates are hopeless? Speculative rejection, as a pure function over scores.

The idea is Sun et al., "Fast Best-of-N Decoding via Speculative Rejection" (arXiv 2410.20290): the score of a candidate
so far says something about its score in the end, so that those with the lowest partial scores may be stopped, and what
they would still have cost is saved. Of the N candidates of a wave, at the one moment when all have come far enough,

    rank:  the final score of a candidate that has ended, else its partial score; at a tie the lower index is better
    kept:  the best max(1, at_least, ceil(keep N))
    stop:  who is not kept and has not ended

The paper stops whenever the GPU's memory is full, a share of those that are left each time; here memory is vLLM's
affair, and there is one such moment for each wave. A candidate without a score of either kind has no rank and is not
one of the N.

It is a bet: a partial score is given by a model that was trained on whole solutions. For `best_of_n` the answer is the
one without rejection exactly when the candidate that would win is among the best ceil(keep N) at that moment. The other
selections lose the votes of those that were stopped; `majority` asks for no scores, so there it is not offered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

AFTER_TOKENS = 32
"""Tokens of each candidate of a wave before any is judged."""

KEEP = 0.5
"""Share of a wave that is kept."""

_ROUNDING = 1e-9  # 0.1 of 30 is 3, which floating point has a little above it


@dataclass(frozen=True, slots=True)
class RejectRules:
    """How much is stopped.

    Attributes:
        after_tokens: of each candidate of a wave that has not ended, before any is judged.
        keep: share of a wave that is kept, above 0 and below 1.
        at_least: candidates that are kept in any case.
    """

    after_tokens: int = AFTER_TOKENS
    keep: float = KEEP
    at_least: int = 1

    def kept(self, candidates: int) -> int:
        """How many of so many candidates are kept."""
        share = math.ceil(self.keep * candidates - _ROUNDING)
        return min(candidates, max(1, self.at_least, share))

    def may_stop(self, waves: Sequence[int]) -> bool:
        """Whether any candidate of waves of these sizes could be stopped, where all of the waves before have ended."""
        starts = itertools.accumulate(waves, initial=0)
        return any(
            replace(self, at_least=self.at_least - start).kept(size) < size
            for start, size in zip(starts, waves, strict=False)
        )


def hopeless(rules: RejectRules, scores: Mapping[int, float], unfinished: Collection[int]) -> list[int]:
    """The candidates to stop, by index.

    Args:
        rules: how many are kept.
        scores: index → final score of a candidate that has ended, or partial score of one that has not.
        unfinished: the indices of those that have not.
    """
    ranked = sorted(scores, key=lambda index: (-scores[index], index))
    return sorted(set(ranked[rules.kept(len(ranked)) :]) & set(unfinished))
