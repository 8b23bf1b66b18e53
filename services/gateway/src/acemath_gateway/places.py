"""How many candidates may be made at once, where no setting says so: as many as the policy's engines hold.

An engine has `max_sequences` in its batch and the keys and values of `cache_tokens` tokens in its cache. A sequence
that finds no room there throws another one out, which has to begin anew (vLLM's preemption), so that more of them make
fewer tokens. A replica therefore takes

    min(max_sequences, cache_tokens / mean tokens of a candidate)

where the mean is of the candidates that ended lately, at any gateway, each with its share of the prompt that the n of a
request have in common. Requests are spread evenly over the replicas, so the bound is their number times the least of
them, and never less than the largest request. Candidates that are made at once have half their length on average if
all have the same, and more the more their lengths differ; up to the mean there is room. Whatever waits does so at the
door, where it has a priority and a deadline, not in an engine's queue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

from acemath_core.wire import MAX_CANDIDATES

MOST_PLACES = 16384
"""No bound is larger than that."""

UNSAID = 64
"""Places of a replica that says nothing of itself (an agent from before it could)."""

_FIRST_TOKENS = 512.0  # a candidate's length before any has ended; short worked solutions have about that
_FIRST_WEIGHT = 16.0  # it counts as so many candidates
_MEMORY = 512.0  # candidates that the mean goes back
_HALF_SECONDS = 300.0  # a gateway that makes none any more says less and less
_ONE_REQUEST = 16  # candidates that the largest request counts as: one of odd ones does not move everybody's places


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


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the candidates of one gateway get.

    Attributes:
        tokens: their mean.
        weight: candidates that it stands for.
    """

    tokens: float = _FIRST_TOKENS
    weight: float = _FIRST_WEIGHT

    def sound(self) -> bool:
        """Whether these are lengths at all."""
        return 0 < self.tokens < math.inf and 0 < self.weight < math.inf

    def faded(self, seconds: float) -> Lengths:
        """Of candidates that ended so long ago: they stand for half as many every five minutes."""
        return Lengths(self.tokens, max(1e-9, self.weight * 0.5 ** (seconds / _HALF_SECONDS)))

    def with_more(self, tokens: float, candidates: int) -> Lengths:
        """With so many more candidates of that mean."""
        weight = min(_MEMORY, self.weight + candidates)
        return Lengths(self.tokens + (tokens - self.tokens) * candidates / weight, weight)


class Places:
    """The bound on candidates being made at once, over all gateways.

    Args:
        configured: the bound, if a setting says it; None follows the replicas.
        shown: gets the bound whenever it may have changed.
    """

    def __init__(self, configured: int | None, shown: Gauge) -> None:
        self._configured, self._shown = configured, shown
        self._replicas: tuple[Capacity, ...] = (Capacity(),)
        self._lengths, self._others = Lengths(), tuple[Lengths, ...]()
        self._ended = time.monotonic()
        self._now = 0
        self._count()

    def now(self) -> int:
        """The bound."""
        return self._now

    def replicas(self, found: Sequence[Capacity]) -> None:
        """New candidates are made by these; while there is none, what the last ones held still counts."""
        if found and (known := tuple(found)) != self._replicas:
            self._replicas = known
            self._count()

    def own(self) -> Lengths:
        """How long this gateway's candidates get."""
        return self._lengths.faded(time.monotonic() - self._ended)

    def elsewhere(self, lengths: Iterable[Lengths]) -> None:
        """Candidates get so long at the other gateways. Who had a lower bound than they would never be let in."""
        self._others = tuple(lengths)
        self._count()

    def ended(self, prompt_tokens: int, whole: Sequence[int], broken_off: Sequence[int]) -> None:
        """A request is over that made candidates of these lengths, in tokens, of one prompt.

        What was broken off would have become longer, so a request with any of it can only make the mean larger: what an
        overload cuts short must not look short, for which there would be more places.
        """
        made = len(whole) + len(broken_off)
        if not made:
            return
        tokens = (prompt_tokens + sum(whole) + sum(broken_off)) / made
        if broken_off:
            tokens = max(tokens, self._lengths.tokens)
        self._lengths = self.own().with_more(tokens, min(made, _ONE_REQUEST))
        self._ended = time.monotonic()
        self._count()

    def _count(self) -> None:
        now = self._configured or min(MOST_PLACES, max(MAX_CANDIDATES, self._held()))
        if now != self._now:
            self._now = now
            self._shown.set(now)

    def _held(self) -> int:
        known = (self.own(), *self._others)
        mean = sum(one.tokens * one.weight for one in known) / sum(one.weight for one in known)
        return len(self._replicas) * min(replica.places(mean) for replica in self._replicas)
