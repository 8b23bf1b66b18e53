"""The picture: useful tokens a second of every system on every set, with the range; the peak is in its title.

What answers the very same call from a cache is in the tables only: it would be the whole height of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.reward.record import ScoreBook
from bench.reward.summary import labels_of, summarised

WIDTH = 0.8


def draw(document: Mapping[str, Any], scores: ScoreBook, out: Path) -> None:
    """Write the picture; the format is that of the file's name."""
    found, names = summarised(document, scores), list(document["sets"])
    labels = [label for label in labels_of(document, "peer") + labels_of(document, "ours") if ": " not in label]
    figure, axes = pyplot.subplots(figsize=(11, 5), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for index, label in enumerate(labels):
        _bars(axes, found["rates"][label], names, (index, len(labels)), colours[index % len(colours)], label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("useful tokens per second (median, range)")
    peak = found["peak_tokens_per_second"]
    limit = f"; its matrix products alone: {peak:,.0f} tokens per second" if peak else ""
    axes.set_title(f"{document['machine']['cpu']}, {document['arguments']['threads']} threads{limit}", fontsize=9)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def _bars(
    axes: Any, rates: Mapping[str, Any], names: list[str], place: tuple[int, int], colour: Any, label: str
) -> None:
    index, count = place
    shown = [(at, rates[name]["useful_tokens_per_second"]) for at, name in enumerate(names) if rates.get(name)]
    x = [at + WIDTH * ((index + 0.5) / count - 0.5) for at, _ in shown]
    middle = [one["median"] for _, one in shown]
    low = [one["median"] - one["min"] for _, one in shown]
    high = [one["max"] - one["median"] for _, one in shown]
    axes.bar(x, middle, WIDTH / count, yerr=[low, high], color=colour, label=label, error_kw={"linewidth": 0.8})
