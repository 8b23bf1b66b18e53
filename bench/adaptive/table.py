"""The figures as Markdown, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.recorded.figures import percent


def table(document: Mapping[str, Any]) -> str:
    """One table for each set and selection."""
    return "\n".join(
        line
        for one in document["sets"]
        for selection, rows in one["selections"].items()
        for line in _lines(one, selection, rows)
    )


def _lines(one: Mapping[str, Any], selection: str, rows: list[Mapping[str, Any]]) -> list[str]:
    full = f"fixed {one['n']}"
    return [
        f"### {one['name']}, {selection} ({one['problems']} problems)",
        "",
        f"| way | accuracy | − {full} | {one['unit']} | saved | candidates | steps |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
    ]


def _line(row: Mapping[str, Any]) -> str:
    cells = (
        row["way"],
        percent(row["accuracy"]),
        percent(row["accuracy_difference"]),
        f"{row['cost']['value']:.0f}",
        percent(row["cost_saved"]),
        f"{row['candidates']['value']:.1f}",
        f"{row['steps']['value']:.0f}",
    )
    return f"| {' | '.join(cells)} |"
