"""The gateway's rule on recorded candidates: of each wave, those are stopped whose partial scores are hopeless."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acemath_gateway.rejection import RejectRules, hopeless
from bench.recorded.pools import Recorded


@dataclass(frozen=True, slots=True)
class EarlyReject:
    """Called with a wave, it says which candidates are stopped; all of them at T tokens, where verdicts take no time.

    Attributes:
        after_tokens: T.
        keep: share of a wave that goes on or has ended.
    """

    after_tokens: int
    keep: float

    def __call__(self, wave: Sequence[Recorded]) -> Mapping[int, int]:
        """Index → tokens of those that are stopped; never all of a wave."""
        rules = RejectRules(self.after_tokens, self.keep)
        unfinished = [candidate.index for candidate in wave if candidate.cost > self.after_tokens]
        scores = {candidate.index: self._standing(candidate) for candidate in wave}
        return dict.fromkeys(hopeless(rules, scores, unfinished), self.after_tokens)

    def _standing(self, candidate: Recorded) -> float:
        if candidate.cost > self.after_tokens:
            return candidate.drafts[self.after_tokens]
        return -math.inf if candidate.score is None else candidate.score
