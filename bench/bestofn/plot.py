"""The picture: problems a minute of each way, by clients, a panel for each n."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.bestofn.table import rate


def draw(result: Mapping[str, Any], out: Path) -> None:
    """Write the picture; the format is that of the file's name."""
    steps = result["steps"]
    counts, clients, ways = (sorted_values(steps, name) for name in ("n", "clients", "way"))
    figure, panels = pyplot.subplots(1, len(counts), figsize=(5 * len(counts), 4), layout="constrained", squeeze=False)
    width = 0.8 / len(ways)
    for panel, n in zip(panels[0], counts, strict=True):
        for place, way in enumerate(ways):
            found = [
                [rate(one) for one in steps if (one["n"], one["clients"], one["way"]) == (n, c, way)] for c in clients
            ]
            heights = [statistics.median(rates) if rates else 0.0 for rates in found]
            panel.bar([x + place * width for x in range(len(clients))], heights, width, label=way)
        middle = [x + (len(ways) - 1) * width / 2 for x in range(len(clients))]
        panel.set(
            title=f"best of {n}", xticks=middle, xticklabels=[f"{c} clients" if c > 1 else "1 client" for c in clients]
        )
    panels[0][0].set_ylabel("problems a minute")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores for policy, reward and all else", fontsize=9
    )
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def sorted_values(steps: list[Mapping[str, Any]], name: str) -> list[Any]:
    """Those that there are; ways in the order in which they were asked first, numbers by size."""
    found = list(dict.fromkeys(step[name] for step in steps))
    return found if name == "way" else sorted(found)
