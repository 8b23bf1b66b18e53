"""How many candidates may be made at once, where no setting says so: as many as the policy's engines hold.

An engine has `max_sequences` in its batch and the keys and values of `cache_tokens` tokens in its cache. A sequence
that finds no room there throws another one out, which has to begin anew (vLLM's preemption), so that more of them make
fewer tokens. A replica therefore takes

    min(max_sequences, cache_tokens / mean tokens of a candidate)

where the mean is of the candidates that ended here lately, each with its share of the prompt that the n of a request
have in common. A sequence has half its length on average while it is made: the other half is room for those that get
longer than the mean. Whatever waits does so at the door, where it has a priority and a deadline, not in an engine's
queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

MOST_PLACES = 16384
"""No sum is larger than that."""

UNSAID = 64
"""Places of a replica that says nothing of itself (an agent from before it could)."""

_FIRST_TOKENS = 512.0  # a candidate's length before any has ended; short worked solutions have about that
_FIRST_WEIGHT = 16  # it counts as so many candidates
_MEMORY = 512  # candidates that the mean goes back


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one policy replica holds.

    Attributes:
        max_sequences: in its batch; None when it does not say.
        cache_tokens: in its cache; None when it does not say.
    """

    max_sequences: int | None = None
    cache_tokens: int | None = None

    def places(self, candidate_tokens: float) -> int:
        """Candidates of that length that it makes at once; at least one."""
        most = self.max_sequences or UNSAID
        if self.cache_tokens is None:
            return most
        return max(1, min(most, int(self.cache_tokens / candidate_tokens)))


class Places:
    """The bound on candidates being made at once, over all gateways.

    Args:
        configured: the bound, if a setting says it; None follows the replicas.
        shown: gets the bound whenever it may have changed.
    """

    def __init__(self, configured: int | None, shown: Gauge) -> None:
        self._configured, self._shown = configured, shown
        self._replicas: tuple[Capacity, ...] = (Capacity(),)
        self._tokens, self._weight = _FIRST_TOKENS, _FIRST_WEIGHT
        self._now = 0
        self._count()

    def now(self) -> int:
        """The bound; what is larger runs alone."""
        return self._now

    def replicas(self, found: Sequence[Capacity]) -> None:
        """These replicas make candidates now; while there is none, what the last ones held still counts."""
        if found and (known := tuple(found)) != self._replicas:
            self._replicas = known
            self._count()

    def ended(self, prompt_tokens: int, whole: Sequence[int], broken_off: Sequence[int]) -> None:
        """A request is over that made candidates of these lengths, in tokens, of one prompt.

        What was broken off would have become longer, so it can only make the mean larger: requests that an overload
        cuts short must not look like short ones, for which there would be more places.
        """
        made = len(whole) + len(broken_off)
        if not made:
            return
        share = prompt_tokens / made
        tokens = sum(length + share for length in whole) + sum(
            max(self._tokens, length + share) for length in broken_off
        )
        self._weight = min(_MEMORY, self._weight + made)
        self._tokens += (tokens / made - self._tokens) * made / self._weight
        self._count()

    def _count(self) -> None:
        found = self._configured or sum(replica.places(self._tokens) for replica in self._replicas)
        if (now := min(MOST_PLACES, found)) != self._now:
            self._now = now
            self._shown.set(now)
