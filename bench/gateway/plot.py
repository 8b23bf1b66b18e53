"""The picture: milliseconds that each server adds, over the rate, a panel for each n; a flood ends its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.gateway.table import BASE, added, names
from bench.reward.stats import spread


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write the picture; the format is that of the file's name."""
    counts = list(dict.fromkeys(cell["n"] for cell in document["cells"]))
    figure, panels = pyplot.subplots(
        1, len(counts), figsize=(4 * len(counts), 4), layout="constrained", sharey=True, squeeze=False
    )
    for panel, n in zip(panels[0], counts, strict=True):
        for index, leg in enumerate(name for name in names(document) if name != BASE):
            _line(panel, document, leg, n, f"C{index}")
        panel.set(title=f"n = {n}", xscale="log", yscale="log", xlabel="requests a second")
    panels[0][0].set_ylabel("ms added to the stand-in's median\n(line: median, dotted: p99)")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"{document['machine']['cpu']}, one core for the server", fontsize=9)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def _line(panel: Any, document: Mapping[str, Any], leg: str, n: int, colour: str) -> None:
    rates = sorted({cell["rate"] for cell in document["cells"] if cell["n"] == n})
    for what, style in (("p50", "-o"), ("p99", ":o")):
        found = {rate: spread(list(added(document, leg, n, rate, what).values())) for rate in rates}
        shown = {rate: one for rate, one in found.items() if one}
        middle = [one["median"] for one in shown.values()]
        low = [one["median"] - one["min"] for one in shown.values()]
        high = [one["max"] - one["median"] for one in shown.values()]
        label = leg if what == "p50" else None
        panel.errorbar(list(shown), middle, yerr=[low, high], fmt=style, color=colour, label=label, markersize=3)
