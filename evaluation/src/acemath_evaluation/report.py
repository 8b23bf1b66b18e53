"""Write results down: Markdown for people, JSON for scripts, a plot of the metrics against k."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from acemath_evaluation.curves import DRAWS
from acemath_evaluation.intervals import LEVEL, METHOD, RESAMPLES, Estimate
from acemath_evaluation.metrics import CONTROLS, METRICS, label
from acemath_evaluation.results import RunCount, SetResult


def write_report(results: Sequence[SetResult], directory: Path, *, title: str) -> list[Path]:
    """Write `report.md`, `report.json` and `curves.png` into the directory; return their paths."""
    from acemath_evaluation.plot import save_plot  # noqa: PLC0415 (matplotlib: a second that no other command owes)

    directory.mkdir(parents=True, exist_ok=True)
    markdown, document, plot = (directory / name for name in ("report.md", "report.json", "curves.png"))
    markdown.write_text(render(results, title), encoding="utf-8")
    document.write_text(json.dumps(as_document(results, title), indent=1) + "\n")
    save_plot(results, plot)
    return [markdown, document, plot]


def as_document(results: Sequence[SetResult], title: str) -> dict[str, Any]:
    """Return the report as JSON; `complete` is false if a problem that was asked for has no outcome."""
    return {"title": title, "complete": all(r.complete for r in results), "sets": [r.document() for r in results]}


def render(results: Sequence[SetResult], title: str) -> str:
    """Return the report in Markdown. Percentages, with 95 % intervals in brackets. An unfinished run heads it."""
    n = results[0].n
    metrics = table(
        ["set", "problems", *(label(m, n) for m in METRICS)], [*map(_metric_row, results), *_macro(results)]
    )
    gains = table(["set", *(f"{label('rm', n)} - {label(c, n)}" for c in CONTROLS)], map(_gain_row, results))
    counts = table(
        ["set", "mixed", "AUC in a problem", "AUC pooled", "left out", "undecided", "unscored"],
        map(_count_row, results),
    )
    parts = [
        f"# {_heading(results)}{title}",
        _method(results),
        *_asked(results),
        "## Metrics",
        metrics,
        "## Paired differences, in points",
        gains,
    ]
    parts += ["A difference in bold excludes zero.", "## Against k", "![metrics against k](curves.png)"]
    parts += [_curve_table(results), "## What was counted", counts, "## Where it comes from", _provenance(results)]
    return "\n\n".join(parts) + "\n"


def percent(estimate: Estimate) -> str:
    """Return e.g. `34.1 [30.0, 38.2]`."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _heading(results: Sequence[SetResult]) -> str:
    parts = []
    for result in results:
        if (run := result.run) is None or run.complete or result.parts:
            continue
        done = run.asked - run.unfinished
        unknown = f"{result.name}: {done} problems, not written down how many were asked for"
        parts.append(f"{result.name}: {done} of {run.asked} problems" if run.asked_is_known else unknown)
    return f"INCOMPLETE ({'; '.join(parts)}): " if parts else ""


def _asked(results: Sequence[SetResult]) -> list[str]:
    """Return what became of the problems that were asked for; nothing for given pools."""
    runs = [(result.name, result.run) for result in results if result.run is not None]
    if not runs:
        return []
    rows = [[name, *map(str, _run_counts(run))] for name, run in runs]
    header = ["set", "asked", "answered", "failed", "why", "no outcome yet", "missing candidates"]
    failed = "Failed problems count as wrong" if runs[0][1].failed_count_as_wrong else "Failed problems are left out"
    return ["## What was asked", table(header, rows), f"{failed}; candidates that never came count as wrong."]


def _run_counts(run: RunCount) -> tuple[object, ...]:
    why = ", ".join(f"{code} {count}" for code, count in run.failed.items()) or "-"
    asked = run.asked if run.asked_is_known else "not written down"
    return asked, run.answered, sum(run.failed.values()), why, run.unfinished, run.missing_candidates


def _method(results: Sequence[SetResult]) -> str:
    drawn = "; ".join(f"{r.name}: {r.clusters} {r.resampled}" for r in results)
    return (
        f"All metrics are on the same candidates. Intervals: {LEVEL:.0%}, {METHOD} bootstrap, {RESAMPLES} resamples "
        f"of {drawn}. Where a problem has more than k candidates, the mean of {DRAWS} random draws of k. "
        "Ties, as in the gateway: the best score, then the first."
    )


def _metric_row(result: SetResult) -> list[str]:
    return [result.name, str(result.problems), *(percent(result.headline.metrics[m]) for m in METRICS)]


def _macro(results: Sequence[SetResult]) -> list[list[str]]:
    """Return the row of plain means over sets, as AceMath reports them; none for a single set."""
    results = [result for result in results if not result.parts]
    if len(results) < 2:
        return []
    means = [fmean(result.headline.metrics[m].value for result in results) for m in METRICS]
    return [["mean of sets", str(sum(r.problems for r in results)), *(f"{100 * mean:.1f}" for mean in means)]]


def _gain_row(result: SetResult) -> list[str]:
    gains = [result.headline.gains[control] for control in CONTROLS]
    return [result.name, *(f"**{percent(gain)}**" if gain.excludes_zero else percent(gain) for gain in gains)]


def _count_row(result: SetResult) -> list[str]:
    areas = ["-" if area is None else f"{area:.3f}" for area in (result.pairwise_accuracy, result.pooled_auc)]
    mixed = f"{result.mixed} of {result.problems}"
    return [result.name, mixed, *areas, *map(str, (result.left_out, result.undecided, result.unscored))]


def _curve_table(results: Sequence[SetResult]) -> str:
    shown = ("rm", "majority", "weighted", "pass@k")
    rows = [
        [result.name, str(point.k), *(percent(point.metrics[m]) for m in shown)]
        for result in results
        for point in result.curve
    ]
    return table(["set", "k", *(name.removesuffix("@k") + "@k" for name in shown)], rows)


def _provenance(results: Sequence[SetResult]) -> str:
    return "\n".join(
        f"* {result.name}: " + ", ".join(f"{key} `{value}`" for key, value in result.provenance.items())
        for result in results
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
