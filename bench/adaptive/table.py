"""The figures as Markdown, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def percent(estimate: Mapping[str, float]) -> str:
    """A share in percent with its interval."""
    value, low, high = (f"{100 * estimate[key]:.1f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
