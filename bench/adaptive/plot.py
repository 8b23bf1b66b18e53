"""Accuracy against cost: fixed N as one line, adaptive N at its confidences as another; a panel a set and selection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_INCHES = (3.6, 3.0)
_LINES = (("fixed ", "fixed N"), ("adaptive ", "adaptive, confidence"))


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write the picture; the format is that of the file's name."""
    sets = document["sets"]
    columns = max(len(one["selections"]) for one in sets)
    size = (_INCHES[0] * columns, _INCHES[1] * len(sets))
    pyplot.rcParams["svg.hashsalt"] = "acemath"
    figure, grid = pyplot.subplots(len(sets), columns, figsize=size, layout="constrained", squeeze=False)
    for line, one in zip(grid, sets, strict=True):
        for axes in line[len(one["selections"]) :]:
            axes.set_axis_off()
        for axes, (selection, rows) in zip(line, one["selections"].items(), strict=False):
            _panel(axes, one, selection, rows)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axes: Any, one: Mapping[str, Any], selection: str, rows: list[Mapping[str, Any]]) -> None:
    for prefix, label in _LINES:
        own = [row for row in rows if row["way"].startswith(prefix)]
        x = [row["cost"]["value"] for row in own]
        y = [100 * row["accuracy"]["value"] for row in own]
        low = [100 * (row["accuracy"]["value"] - row["accuracy"]["low"]) for row in own]
        high = [100 * (row["accuracy"]["high"] - row["accuracy"]["value"]) for row in own]
        axes.errorbar(x, y, yerr=[low, high], marker="o", markersize=3, linewidth=1, elinewidth=0.4, label=label)
        for place, (row, across, up) in enumerate(zip(own, x, y, strict=True)):
            beside = (2, -8 if place % 2 else 3)  # above and below in turn: neighbours may lie close
            axes.annotate(
                row["way"].removeprefix(prefix), (across, up), fontsize=6, xytext=beside, textcoords="offset points"
            )
    axes.set_title(f"{one['name']} ({one['problems']}), {selection}", fontsize=8)
    axes.set_xlabel(f"{one['unit']} a problem", fontsize=7)
    axes.set_ylabel("right, %", fontsize=7)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="lower right")
