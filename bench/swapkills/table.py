"""The results as markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench.swapkills.matrix import CELLS, MEANS, Cell, Stage, Victim, left_out
from bench.swapkills.results import Hit, Row, broken

MARK = "<!-- rendered by python -m bench.swapkills table -->"


def render(document: Mapping[str, Any]) -> str:
    """Totals, a line for each cell, and which pairs are none and why."""
    rows: Mapping[str, Row] = document["cells"]
    found = [*_totals(rows), "", *_cells(rows), "", *_publisher(rows)] if rows else []
    return "\n".join([*found, *_not_run(rows), *_none()])


def put(text: str, document: str) -> str:
    """A document with the rendered part behind its mark.

    Raises:
        ValueError: it has no mark.
    """
    before, mark, _ = document.partition(MARK)
    if not mark:
        raise ValueError(f"there is no line {MARK!r} in it; put one where the table is to begin")
    return f"{before}{mark}\n\n{text}\n"


def _totals(rows: Mapping[str, Row]) -> list[str]:
    hit = [row for row in rows.values() if row["hit"] != Hit.MISSED]
    sums = Counter[str]()
    for row in hit:
        sums.update({name: row["requests"][name] for name in ("sent", "answered", "declared error", "cut", "lost")})
        sums["mixed"] += len(row["requests"]["mixed"])
    codes = sum((Counter(row["requests"]["codes"]) for row in hit), Counter[str]())
    kills, missed = sum(row["hit"] == Hit.HIT for row in hit), len(rows) - len(hit)
    named = ", ".join(f"{count} `{code}`" for code, count in codes.most_common())
    return [
        "| | |",
        "|---|---|",
        f"| cells | {kills} kills, {missed} missed, of {len(CELLS)} |",
        f"| requests | {sums['sent']} = {sums['answered']} answered + {sums['declared error']} declared errors + "
        f"{sums['cut']} cut by the gateway's death + **{sums['lost']} lost** |",
        f"| declared errors | {named or 'none'} |",
        f"| mixed answers | **{sums['mixed']}** |",
        f"| cells that break a promise | {sum(bool(broken(row)) for row in hit)} |",
    ]


def _cells(rows: Mapping[str, Row]) -> list[str]:
    head = (
        "| killed | at | versions then (policy: old, new; reward: old, new) | every request answered again, s "
        "| new release answers, s | over, s | ended with | requests: sent = answered + declared + cut + lost |"
    )
    return [head, "|---" * 8 + "|", *(_line(cell, rows[str(cell)]) for cell in _sorted() if str(cell) in rows)]


def _not_run(rows: Mapping[str, Row]) -> list[str]:
    cells = [str(cell) for cell in CELLS if str(cell) not in rows]
    return [f"Not run, in the order in which they would be: {', '.join(cells)}.", ""] if cells else []


def _sorted() -> list[Cell]:
    stages, victims = list(Stage), list(Victim)
    return sorted(CELLS, key=lambda cell: (stages.index(cell.stage), victims.index(cell.victim)))


def _line(cell: Cell, row: Row) -> str:
    if row["hit"] == Hit.MISSED:
        why = f"missed {row['attempts']} times: it passed too quickly, or nobody lived in it"
        return f"| {cell.victim} | {cell.stage} | {why} | | | | | |"
    requests, wrong = row["requests"], broken(row)
    counts = " + ".join(str(requests[name]) for name in ("answered", "declared error", "cut", "lost"))
    end = row["end"] + (f" **{'; '.join(wrong)}**" if wrong else "")
    cells = (
        f"{cell.victim}" + (f" (`{row['killed']}`)" if row["killed"] else ""), cell.stage, _states(row["seen"]),
        _seconds(row["seconds_until_answered"]), _seconds(row["seconds_until_new_release"]),
        _seconds(row["seconds_until_over"]), end, f"{requests['sent']} = {counts}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _states(seen: Mapping[str, str]) -> str:
    return "; ".join(f"{seen[f'old {kind}']}, {seen[f'new {kind}']}" for kind in ("policy", "reward")) if seen else ""


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _publisher(rows: Mapping[str, Row]) -> list[str]:
    found = [(name, row["after_publisher"]) for name, row in rows.items() if row.get("after_publisher")]
    return [
        line
        for name, after in found
        for line in (
            f"{name}: half versions {len(after['half'])}; left by the dead {len(after['left'])}, after `gc` "
            f"{len(after['left_after_gc'])}; the next publisher: {after['next']}, {after['next_seconds']:.1f} s.",
            "",
        )
    ]


def _none() -> list[str]:
    reasons: dict[str, list[str]] = {}
    for victim in Victim:
        for stage in Stage:
            if victim is not Victim.NOBODY and (why := left_out(victim, stage)):
                reasons.setdefault(why, []).append(f"{victim} @ {stage}")
    lines = [f"* {', '.join(cells)}: {why}." for why, cells in reasons.items()]
    return ["States:", "", *(f"* {stage}: {means}." for stage, means in MEANS.items()), "", "No cells:", "", *lines]
