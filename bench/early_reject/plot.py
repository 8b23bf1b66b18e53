"""Accuracy against tokens: fixed N is the line to beat; rejection a line for each share that is kept, along T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_INCHES = (3.9, 3.3)
_COLOURS = {0.25: "tab:red", 0.5: "tab:orange", 0.75: "tab:green"}
_MARKERS = ("o", "s", "^")
_NAMED = (1, 2, 4, 8, 12, 16)
_PAIRED = 0.8
"""Confidence of adaptive N with which rejection is drawn."""

Rows = Sequence[Mapping[str, Any]]


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write the picture; the format is that of the file's name."""
    sets = document["sets"]
    selections = list(sets[0]["selections"])
    size = (_INCHES[0] * len(selections), _INCHES[1] * len(sets))
    pyplot.rcParams["svg.hashsalt"] = "acemath"
    figure, grid = pyplot.subplots(len(sets), len(selections), figsize=size, layout="constrained", squeeze=False)
    for line, one in zip(grid, sets, strict=True):
        for axes, selection in zip(line, selections, strict=True):
            _panel(axes, one["selections"][selection])
            axes.set_title(f"{one['name']} ({one['problems']}), {selection}", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(axes: Any, rows: Rows) -> None:
    fixed = _of(rows, "fixed")
    _line(axes, fixed, color="black", marker=".", label="fixed N")
    for row in fixed:
        if row["n"] in _NAMED:
            _name(axes, row, str(row["n"]))
    adaptive = _of(rows, "adaptive")
    _line(axes, adaptive, color="tab:blue", marker="d", label="adaptive, from its lowest confidence")
    _name(axes, adaptive[0], str(adaptive[0]["confidence"]))
    sizes = sorted({row["n"] for row in _of(rows, "reject")}, reverse=True)
    for keep, colour in _COLOURS.items():
        for n, marker in zip(sizes, _MARKERS, strict=False):
            own = [row for row in _of(rows, "reject") if (row["keep"], row["n"]) == (keep, n)]
            _line(axes, own, color=colour, marker=marker, linestyle=":", label=f"N = {n}, keep {keep}")
        both = [r for r in _of(rows, "adaptive and reject") if (r["keep"], r["confidence"]) == (keep, _PAIRED)]
        _line(axes, both, color=colour, marker="x", linestyle="--", label=f"adaptive {_PAIRED}, keep {keep}")
    axes.set_xlabel("tokens a problem", fontsize=7)
    axes.set_ylabel("right, %", fontsize=7)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)


def _of(rows: Rows, kind: str) -> Rows:
    return [row for row in rows if row["kind"] == kind]


def _line(axes: Any, rows: Rows, **look: Any) -> None:
    x, y = [row["cost"]["value"] for row in rows], [100 * row["accuracy"]["value"] for row in rows]
    axes.plot(x, y, **{"markersize": 3, "linewidth": 0.8, "alpha": 0.85, **look})


def _name(axes: Any, row: Mapping[str, Any], text: str) -> None:
    where = (row["cost"]["value"], 100 * row["accuracy"]["value"])
    axes.annotate(text, where, fontsize=6, xytext=(2, -7), textcoords="offset points")
