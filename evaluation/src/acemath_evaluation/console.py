"""What `acemath eval` shows: progress and errors on standard error, results on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from acemath_core.comparison import Comparison
from acemath_core.settings import SettingsError
from acemath_evaluation.benchmark import SampledFile, ShowProgress, Step
from acemath_evaluation.calibration import Fitted
from acemath_evaluation.comparison import NotComparable, render_comparison
from acemath_evaluation.http_calls import CallError
from acemath_evaluation.journal import JournalError
from acemath_evaluation.report import as_document, render
from acemath_evaluation.results import NothingToMeasure, SetResult
from acemath_evaluation.rows import RowError
from acemath_evaluation.sampling import SamplingStopped

_EXPECTED = (CallError, JournalError, NotComparable, NothingToMeasure, RowError, SamplingStopped, SettingsError)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that a user can do something about into one line and exit status 1."""
    try:
        yield
    except _EXPECTED as error:
        Console(stderr=True, highlight=False).print(f"acemath eval: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


@contextmanager
def progress() -> Iterator[ShowProgress]:
    """Give a function that opens a bar (title, total, done) and returns the step that moves it by one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def show(title: str, total: int, done: int) -> Step:
            task = bars.add_task(title, total=total, completed=done)
            return lambda: bars.advance(task)

        yield show


def finish_run(runs: Sequence[SampledFile], as_json: bool) -> None:
    """Print what was sampled; exit status 1 if a problem failed."""
    if as_json:
        typer.echo(json.dumps({"sets": [sampled.document() for sampled in runs]}))
    for sampled in [] if as_json else runs:
        typer.echo(f"{sampled.journal}: {sampled.done} problems")
    for sampled in runs:
        for problem, reason in sampled.failed.items():
            typer.echo(f"failed: {problem}: {reason}", err=True)
    if any(sampled.failed for sampled in runs):
        raise typer.Exit(1)


def finish_calibration(fitted: Fitted, path: Path) -> None:
    """Write the calibration and print it with what it is worth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fitted.calibration.model_dump_json(indent=2) + "\n")
    held_out = {"at_temperature_1": fitted.at_one, "at_fitted_temperature": fitted.at_fitted}
    typer.echo(json.dumps({**fitted.calibration.model_dump(), "weighted_vote_accuracy": held_out}, indent=2))
    typer.echo(f"wrote {path}; the gateway reads it with ACEMATH_GATEWAY__CALIBRATION_FILE={path}", err=True)


def finish_comparison(comparison: Comparison, path: Path, as_json: bool) -> None:
    """Write the comparison and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(comparison.model_dump_json(indent=2) + "\n")
    typer.echo(comparison.model_dump_json() if as_json else render_comparison(comparison))
    typer.echo(f"wrote {path}; a gate reads it after: acemath registry gates attach {path}", err=True)


def show_report(results: Sequence[SetResult], written: Sequence[Path], title: str, as_json: bool) -> None:
    """Print the report and where it was written."""
    if as_json:
        files = [str(path) for path in written]
        typer.echo(json.dumps({**as_document(results, title), "files": files}))
        return
    typer.echo(render(results, title))
    for path in written:
        typer.echo(f"wrote {path}", err=True)
