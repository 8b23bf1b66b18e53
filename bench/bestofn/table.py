"""Markdown of a result."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

OURS = "ours"


def tables(result: dict[str, Any]) -> str:
    """One row for each way, number of clients and n; ratios to ours are of the same round."""
    lines = [
        "| n | clients | way | seconds a problem, median | problems a minute | times ours | tokens a problem | right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *_rows(result["steps"])])


def _rows(steps: list[dict[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for step in steps:
        groups.setdefault((step["n"], step["clients"], step["way"]), []).append(step)
    for (n, clients, way), own in sorted(groups.items(), key=lambda item: item[0][:2]):
        seconds = statistics.median(
            [value for step in own for value in step["seconds"] if value is not None] or [float("nan")]
        )
        rates = [rate(step) for step in own]
        ratios = [
            rate(step) / rate(other)
            for step in own
            for other in groups.get((n, clients, OURS), [])
            if other["round"] == step["round"] and rate(other)
        ]
        tokens = [step["tokens"] / step["problems"] for step in own if step["tokens"]]
        right, asked = sum(step["right"] for step in own), sum(step["problems"] for step in own)
        lost = asked - sum(step["answered"] for step in own)
        yield (
            f"| {n} | {clients} | {way} | {seconds:.2f} | {statistics.median(rates):.1f} | {spread(ratios)} "
            f"| {f'{statistics.mean(tokens):.0f}' if tokens else '–'} "
            f"| {100 * right / asked:.1f} %{f', {lost} of {asked} failed' if lost else ''} |"
        )


def rate(step: Mapping[str, Any]) -> float:
    """Answered problems a minute."""
    return 60 * step["answered"] / step["wall_seconds"] if step["wall_seconds"] else 0.0


def spread(values: list[float]) -> str:
    """Median, and the range where there are several."""
    if not values:
        return "–"
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}–{max(values):.2f})"
