"""The figures as Markdown, for people: the last set, which is all sets together where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.recorded.figures import percent


def table(document: Mapping[str, Any]) -> str:
    """What beginnings tell, then the ways, a table for each selection."""
    last = document["sets"][-1]
    lines = [f"## {last['name']} ({last['problems']} problems, {document['reward']})", "", *_drafts(last["drafts"])]
    for selection, rows in last["selections"].items():
        lines += ["", f"### {selection}", "", *_ways(rows)]
    return "\n".join(lines)


def _drafts(found: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "| T | go on, % | tokens behind, % | tau | AUC then | AUC at the end | shift |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        behind, numbers = f"{100 * one['tokens_behind']:.1f}", ("tau", "auc_draft", "auc_whole", "shift")
        cells = [str(one["after_tokens"]), percent(one["go_on"]), behind, *(_number(one[name]) for name in numbers)]
        yield _cells(cells)
    yield ""
    yield "| T | keep | stopped of all, % | of the right | of the wrong | the best one |"
    yield "|---|---|---|---|---|---|"
    for one in found:
        for keep, lost in one["stopped"].items():
            shares = [percent(lost[name]) for name in ("all", "right", "wrong", "best")]
            yield _cells([str(one["after_tokens"]), keep, *shares])


def _ways(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "| way | right, % | tokens | − base | saved of it | − N of its tokens | that N | − largest N | saved of it |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield _cells(
            [
                row["way"],
                percent(row["accuracy"]),
                f"{row['cost']['value']:.0f}",
                percent(row["minus_base"]),
                percent(row["base_saved"]),
                percent(row["minus_same_tokens"]),
                f"{row['same_tokens_as']:.1f}",
                percent(row["minus_full"]),
                percent(row["full_saved"]),
            ]
        )


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{estimate[key]:.2f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
