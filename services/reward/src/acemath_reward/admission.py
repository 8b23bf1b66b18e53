"""Who is let into the queue: what fits, and what would be done in time at the engine's measured speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, TooLarge, Unavailable
from acemath_reward.metrics import RewardMetrics
from acemath_reward.pace import Pace

_LONGEST_RETRY_AFTER = 60.0
_SPLITTING = 1.25


SPREAD = 2
"""A call's later candidates count as due as if the engine worked on it alone, at one part in so many of its speed."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait: tokens (prompts once a call) and candidates."""

    tokens: int
    items: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits when a call comes.

    Attributes:
        tokens: of all that wait.
        items: candidates that came whole.
        before: tokens that are computed before the last of the call's, those of the pass under way among them.
    """

    tokens: int
    items: int
    before: int


class Admission:
    """Refuses what does not fit and what would be late.

    Args:
        limits: what may wait.
        metrics: counts refusals.
        pace: the engine's.
    """

    def __init__(self, limits: QueueLimits, metrics: RewardMetrics, pace: Pace) -> None:
        self._limits, self._metrics, self._pace = limits, metrics, pace

    def check_size(self, tokens: int, candidates: int) -> None:
        """Refuse a call that never fits. Raises `TooLarge`."""
        if tokens > self._limits.tokens or candidates > self._limits.items:
            self._metrics.rejections.labels("queue_full").inc()
            raise TooLarge(
                f"this call has {tokens} tokens in {candidates} candidates; one call may have "
                f"{self._limits.tokens} in {self._limits.items}; send fewer candidates at once",
                param="candidates",
            )

    def check(self, tokens: int, candidates: int, deadline: Deadline, backlog: Backlog) -> None:
        """Refuse a call that does not fit now or would be late. Raises `Unavailable` (`reward_overloaded`).

        An idle engine takes what comes: the speed of other work says too little to refuse what nobody else waits for,
        and refusals would never correct it.
        """
        if backlog.tokens + tokens > self._limits.tokens or backlog.items + candidates > self._limits.items:
            what = f"{backlog.tokens} tokens in {backlog.items} candidates waiting"
            raise self._overloaded("queue_full", what, backlog.tokens)
        seconds = self._seconds(tokens, backlog.before)
        if backlog.before and self._pace.measured and seconds > deadline.remaining():
            raise self._overloaded("too_late", f"{seconds:.1f} s of work until this call would be done", backlog.tokens)

    def retry_after(self, tokens: int) -> float:
        """Seconds in which the engine, at its measured speed, works off so many tokens; between 1 and 60."""
        return min(max(1.0, math.ceil(self._pace.seconds(tokens))), _LONGEST_RETRY_AFTER)

    def _seconds(self, tokens: int, before: int) -> float:
        """Predicted time until a call is done.

        Younger calls step in before its later candidates while these count as not due yet, and only while it waits;
        a call that is split over passes has its prompt computed in each.
        """
        return self._pace.seconds(tokens) + _SPLITTING * self._pace.seconds(before + min(before, SPREAD * tokens))

    def _overloaded(self, reason: str, what: str, tokens: int) -> Unavailable:
        self._metrics.rejections.labels(reason).inc()
        message = f"the reward service has {what}; try again later"
        return Unavailable(message, code=ErrorCode.REWARD_OVERLOADED, retry_after=self.retry_after(tokens))
