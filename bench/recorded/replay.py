"""One job again, on recorded candidates in a given order: the rules are those of the gateway, the world is simpler.

Candidates of a wave are written in step, one token each at a time, as a batch of vLLM does it: they end in the order of
their length, and a score is there the moment its candidate ends, or has got as far as it is looked at. When the answer
is settled, what still runs has cost as many tokens as the candidate that settled it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from acemath_core.wire import Selection, StopReason
from acemath_gateway.selection import TEMPERATURE, select, temperature_of
from acemath_gateway.stopping import StopRules, cannot_change, settled
from bench.recorded.pools import Recorded

Stops = Callable[[Sequence[Recorded]], Mapping[int, int]]
"""Which candidates of a wave are stopped before they end, by index, and how many tokens each has then; never all."""


def none_stopped(_: Sequence[Recorded]) -> Mapping[int, int]:
    """Every candidate is written to its end."""
    return {}


@dataclass(frozen=True, slots=True)
class Ran:
    """What a job came to.

    Attributes:
        correct: whether its answer is right.
        cost: all that was written, also of candidates that were cut off.
        generated: candidates that ended.
        steps: lengths of the longest candidates of the waves, added up: what decoding takes when a step takes
            equally long for few and for many.
        reason: why it stopped early, or None.
    """

    correct: bool
    cost: int
    generated: int
    steps: int
    reason: StopReason | None


def fixed(
    selection: Selection,
    order: Sequence[Recorded],
    temperature: float = TEMPERATURE,
    stops: Stops = none_stopped,
) -> Ran:
    """All of these candidates at once; those that are stopped are not chosen from."""
    stopped = stops(order)
    ended = [candidate for candidate in order if candidate.index not in stopped]
    costs = [stopped.get(candidate.index, candidate.cost) for candidate in order]
    chosen = _choose(selection, ended, temperature)
    return Ran(chosen.correct, sum(costs), len(ended), max(costs), None)


def adaptive(
    selection: Selection,
    order: Sequence[Recorded],
    rules: StopRules,
    waves: Sequence[int],
    *,
    bets_within: bool = False,
    stops: Stops = none_stopped,
) -> Ran:
    """The candidates in waves until the answer is settled.

    Args:
        selection: how the answer is chosen.
        order: all candidates, in the order of their seeds.
        rules: how sure to be.
        waves: sizes, `len(order)` together.
        bets_within: ask for bets whenever a candidate ends, and cut off the others of its wave, which the gateway
            does only when the answer cannot change.
        stops: asked for each wave.
    """
    done: list[Recorded] = []
    cost = steps = start = 0
    temperature = temperature_of(rules.calibration)
    for size in waves:
        wave = _Wave.of(order[start : start + size], stops)
        start += size
        for place, candidate in enumerate(wave.ends):
            done.append(candidate)
            coming = len(order) - start + wave.coming(place)
            reason = _reason(rules, selection, done, coming, bets_within or wave.is_last(place))
            if reason is not None:
                time = wave.time(place)
                chosen = _choose(selection, done, temperature)
                return Ran(chosen.correct, cost + wave.cost(time), len(done), steps + time, reason)
        cost, steps = cost + wave.cost(), steps + wave.time(len(wave.ends) - 1)
    chosen = _choose(selection, done, temperature)
    return Ran(chosen.correct, cost, len(done), steps, None)


@dataclass(frozen=True, slots=True)
class _Wave:
    """Candidates that end, in that order, and how many tokens those that are stopped have then."""

    ends: Sequence[Recorded]
    stopped: Sequence[int]

    @classmethod
    def of(cls, candidates: Sequence[Recorded], stops: Stops) -> _Wave:
        stopped = stops(candidates)
        ends = sorted((c for c in candidates if c.index not in stopped), key=lambda c: (c.cost, c.index))
        return cls(ends, tuple(stopped.values()))

    def is_last(self, place: int) -> bool:
        return place == len(self.ends) - 1

    def time(self, place: int) -> int:
        """Tokens that had time when this one ended; the last one's end is the wave's, so it waits for those stopped."""
        own = self.ends[place].cost
        return max(own, *self.stopped) if self.is_last(place) and self.stopped else own

    def coming(self, place: int) -> int:
        """Candidates of the wave that may still end: one that will be stopped may, as far as is known before."""
        time = self.time(place)
        unknown = 0 if self.is_last(place) else sum(tokens >= time for tokens in self.stopped)
        return len(self.ends) - place - 1 + unknown

    def cost(self, time: int | None = None) -> int:
        """Tokens of the whole wave, or until a time."""
        lengths = [*(c.cost for c in self.ends), *self.stopped]
        return sum(lengths if time is None else (min(length, time) for length in lengths))


def _reason(
    rules: StopRules, selection: Selection, done: Sequence[Recorded], remaining: int, bets: bool
) -> StopReason | None:
    if bets:
        return settled(rules, selection, done, remaining)
    return StopReason.CANNOT_CHANGE if remaining and cannot_change(selection, done, remaining) else None


def _choose(selection: Selection, done: Sequence[Recorded], temperature: float) -> Recorded:
    scored = any(candidate.score is not None for candidate in done)
    return select(selection if scored else Selection.MAJORITY, done, temperature)
