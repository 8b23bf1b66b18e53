"""The rule: when every candidate of a wave has ended or has T tokens, the worst of those that go on are stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.recorded.pools import Recorded


@dataclass(frozen=True, slots=True)
class EarlyReject:
    """Called with a wave, it says which candidates it stops, each at `after_tokens`.

    Attributes:
        after_tokens: T, when candidates are ranked: those that have ended by their scores, the others by the score of
            what they have.
        keep: share of the wave, rounded up, that goes on or has ended; what has ended is never taken back.
    """

    after_tokens: int
    keep: float

    def __call__(self, wave: Sequence[Recorded]) -> Mapping[int, int]:
        """Index → tokens of those that are stopped; never all of a wave."""
        places = max(1, math.ceil(self.keep * len(wave)))
        ranked = sorted(wave, key=lambda candidate: (-self._standing(candidate), candidate.index))
        return {c.index: self.after_tokens for c in ranked[places:] if c.cost > self.after_tokens}

    def _standing(self, candidate: Recorded) -> float:
        if candidate.cost > self.after_tokens:
            return candidate.drafts[self.after_tokens]
        return -math.inf if candidate.score is None else candidate.score
