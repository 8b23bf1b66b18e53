"""A point in time that travels with a request: every hop's time-out is what is left of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from acemath_core.errors import DeadlineExceeded, InvalidRequest

DEADLINE_HEADER = "x-acemath-deadline-ms"
"""Remaining milliseconds on the wire: clocks of two hosts need not agree."""

_EARLY_SECONDS = 0.005  # uvloop, which counts whole milliseconds, ends one time-out in four up to 1.3 ms too soon


@dataclass(frozen=True, slots=True)
class Deadline:
    """A deadline on the monotonic clock, so that a wall-clock jump moves nothing.

    Attributes:
        at: seconds on `time.monotonic()`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that lies `seconds` from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def from_header(cls, value: str | None, *, default_seconds: float) -> Deadline:
        """The deadline a caller sent in `x-acemath-deadline-ms`, never later than the default.

        Raises:
            InvalidRequest: it is no number of 0 or more; a caller who meant to wait a second must not wait for minutes.
        """
        if value is None:
            return cls.after(default_seconds)
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if not math.isfinite(milliseconds) or milliseconds < 0:
            message = f"{DEADLINE_HEADER} must be a number of milliseconds, 0 or more; leave it out for none of yours"
            raise InvalidRequest(message, param=DEADLINE_HEADER)
        return cls.after(min(milliseconds / 1000.0, default_seconds))

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    def expired(self) -> bool:
        """Whether nothing is left; what a time-out at the deadline has ended finds it expired."""
        return self.remaining() <= _EARLY_SECONDS

    def check(self, what: str) -> float:
        """Seconds left for `what`; raises `DeadlineExceeded` when there are none."""
        left = self.remaining()
        if left <= 0.0:
            raise DeadlineExceeded(
                f"the request's deadline passed before {what}; send a larger deadline_seconds or fewer candidates"
            )
        return left

    def header(self) -> dict[str, str]:
        """The header that hands this deadline to the next hop."""
        return {DEADLINE_HEADER: str(int(self.remaining() * 1000))}

    def earlier(self, seconds: float) -> Deadline:
        """A deadline `seconds` before this one: time kept back for what must still follow."""
        return Deadline(self.at - seconds)
