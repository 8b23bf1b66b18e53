"""What a soak found: the promises, and each minute."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.soak.calls import GRACE_SECONDS, Ended, Outcome

GROWTH_SHARE = 0.05
"""Memory is flat while the last fifth's mean is within this share of the second fifth's; the first fifth warms up."""


def summary(ended: Sequence[Ended], memory: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Counts, codes, times, bits and memory, and whether every promise was kept."""
    outcomes = Counter(str(one.outcome) for one in ended)
    codes = Counter(f"{one.outcome}: {one.code}" for one in ended if one.code)
    answered = [one for one in ended if one.outcome is Outcome.ANSWERED]
    changed = sum(one.changed for one in ended)
    growth = {name: _growth([row[name] for row in memory]) for name in (memory[0] if memory else {}) if name != "at"}
    slack = sorted(one.slack for one in answered)
    kept = not (outcomes["lost"] or outcomes["late"] or changed)
    kept = kept and _within(slack) and all(share < GROWTH_SHARE for share in growth.values())
    return {
        "calls": len(ended),
        "outcomes": dict(outcomes),
        "codes": dict(codes),
        "ways": dict(Counter(str(one.way) for one in answered)),
        "groupings_compared": len([one for one in ended if one.scores]),
        "scores_compared": sum(one.scores for one in ended),
        "scores_changed": changed,
        "answered_seconds": _quantiles([one.seconds for one in answered]),
        "refused_seconds": _quantiles([one.seconds for one in ended if one.outcome is Outcome.REFUSED]),
        "slack_seconds_of_answered": {"smallest": round(slack[0], 3), "p1": round(_p1(slack), 3)} if slack else {},
        "memory_growth_share": growth,
        "promises_kept": kept,
    }


def _within(slack: Sequence[float]) -> bool:
    return not slack or _p1(slack) >= -GRACE_SECONDS


def _p1(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) // 100]


def _growth(values: Sequence[float]) -> float:
    fifth = max(len(values) // 5, 1)
    early = values[fifth : 2 * fifth] or values
    return round(statistics.mean(values[-fifth:]) / statistics.mean(early) - 1, 4)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cut = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "median": round(cut[49], 3),
        "p95": round(cut[94], 3),
        "p99": round(cut[98], 3),
        "max": round(max(values), 3),
    }


def minutes_of(ended: Sequence[Ended], memory: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """One row a minute: how many calls of each outcome were sent in it, and the memory in MiB."""
    last = max((one.sent for one in ended), default=0.0)
    rows = []
    for minute in range(int(last // 60) + 1):
        inside = [one for one in ended if minute * 60 <= one.sent < (minute + 1) * 60]
        row: dict[str, float] = {"minute": minute, **Counter(str(one.outcome) for one in inside)}
        seen = [sample for sample in memory if minute * 60 <= sample["at"] < (minute + 1) * 60]
        for name in [name for name in (seen[0] if seen else {}) if name != "at"]:
            row[f"{name}_mib"] = round(statistics.mean(sample[name] for sample in seen) / 2**20, 1)
        rows.append(row)
    return rows


def show(result: dict[str, Any]) -> None:
    """The same for people, without the minutes."""
    for name, value in result.items():
        if name != "minutes":
            print(f"{name}: {value}")
