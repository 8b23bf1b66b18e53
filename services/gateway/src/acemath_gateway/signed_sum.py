"""The sum of figures that may be below zero, as two counters: of those above zero, and of those below.

Prometheus' clients give no `_sum` of a histogram with buckets below zero, and one that falls would look like a restart.
Mean: (the increase of `positive` minus the increase of `negative`) / the increase of the histogram's `_count`.
"""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import Counter


class Sign(StrEnum):
    """Which of the two counters."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


def add_signed(parts: Counter, value: float, *labels: str) -> None:
    """Add a finite value to the counter of its sign, the last of the labels."""
    parts.labels(*labels, Sign.POSITIVE if value >= 0 else Sign.NEGATIVE).inc(abs(value))
