"""What a run of swaps found."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench.reward import machine
from bench.swaps.load import Load
from bench.swaps.memory import Sample, growth

Row = dict[str, float]
PARTS = ("publish", "promote_to_first_answer", "first_answer_to_old_gone")


def report(load: Load, swaps: list[Row], memory: list[Sample], calm: float) -> dict[str, Any]:
    """Counts, failures, times and what stayed behind.

    Args:
        load: the clients, ended.
        swaps: seconds of each swap's parts, and when it was promoted and first answered.
        memory: the stack's processes and MiB before the first swap, after each, and at the end.
        calm: when the first swap began.
    """
    windows = [(one["promoted_at"], one["first_at"]) for one in swaps]

    def seconds(wanted: Callable[[float, float], bool]) -> dict[str, float]:
        return quantiles([took for sent, took, _ in load.answers if wanted(sent, sent + took)])

    return {
        "swaps": len(swaps),
        "answers": len(load.answers),
        "failures": [why for _, why in load.failures],
        "seconds_of_an_answer": {
            "before the first swap": seconds(lambda sent, end: end < calm),
            "while a version loads": seconds(lambda sent, end: any(a <= sent and end < b for a, b in windows)),
            "under way at the flip": seconds(lambda sent, end: any(sent <= flip <= end for _, flip in windows)),
        },
        "seconds": {name: quantiles([one[name] for one in swaps]) for name in PARTS},
        "stack": {"first": memory[0], "last": memory[-1], "most_mib": max(one["memory_mib"] for one in memory)},
        "memory_of": growth(memory[1:-1]),
        "machine": machine.described(),
        "each": [{name: round(value, 3) for name, value in one.items()} for one in swaps],
        "memory": memory,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest; none of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"median": round(statistics.median(ordered), 3), "p99": round(p99, 3), "largest": round(ordered[-1], 3)}
