"""The plot of the metrics against k; the one file that knows matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from acemath_evaluation.results import SetResult

_SHOWN = {"pass@k": "pass@k (oracle)", "rm": "rm@k", "weighted": "weighted vote@k", "majority": "majority@k"}
_INCHES = (4.2, 3.4)
_DPI = 120


def save_plot(results: Sequence[SetResult], path: Path) -> None:
    """Write one panel for each set: four metrics in percent against k, with their intervals shaded."""
    figure = Figure(figsize=(_INCHES[0] * len(results), _INCHES[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        _draw(axes, result)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _draw(axes: Any, result: SetResult) -> None:
    steps = [point.k for point in result.curve]
    for metric, name in _SHOWN.items():
        estimates = [point.metrics[metric] for point in result.curve]
        (line,) = axes.plot(steps, [100 * e.value for e in estimates], marker="o", markersize=3, label=name)
        low, high = (
            [100 * bound for bound in bounds] for bounds in zip(*((e.low, e.high) for e in estimates), strict=True)
        )
        axes.fill_between(steps, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(k) for k in steps])
    axes.set(
        title=f"{result.name} ({result.problems} problems{'' if result.complete else ', incomplete'})",
        xlabel="k",
        ylabel="%",
    )
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
