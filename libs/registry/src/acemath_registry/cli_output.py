"""How `acemath registry` shows things: tables and progress for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from acemath_core.errors import ServiceError
from acemath_registry.errors import VerificationError
from acemath_registry.gates import GateRefused
from acemath_registry.progress import Progress as ProgressCallback
from acemath_registry.progress import no_progress

_ANY_WIDTH = 10_000  # columns: what a table would take if it could
_COLUMNS = {
    "versions": ("model", "kind", "architecture", "dtype", "parameters", "bytes", "created_at", "adapter_of"),
    "releases": ("release", "policy", "reward"),
    "verified": ("model", "files", "bytes", "signed"),
    "planned": ("model", "action", "bytes", "why"),
    "collected": ("model", "action", "bytes", "why"),
    "left": ("path", "bytes", "until"),
    "log": ("at", "event", "by", "what", "from", "to", "why"),
    "refusals": ("reason", "detail"),
    "channels": ("channel", "release", "generation", "served", "previous", "by", "at"),
}


def print_document(document: dict[str, Any], *, as_json: bool) -> None:
    """One document, as JSON, as a table of two columns, or outside a terminal as lines of key, tab, value."""
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, sort_keys=True))
        return
    console = Console()
    if not console.is_terminal:
        for key, value in document.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            typer.echo(f"{key}\t{_one_line(text)}")
        return
    table = Table(show_header=False)
    for key, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        table.add_row(escape(key), escape("\n".join(map(_one_line, text.split("\n")))))
    console.print(table)


def print_overview(overview: dict[str, list[dict[str, Any]]], *, as_json: bool) -> None:
    """Rows of several kinds, as JSON, as a table each, or outside a terminal as lines of cells with tabs between."""
    if as_json:
        typer.echo(json.dumps(overview, ensure_ascii=False, sort_keys=True))
        return
    for title, rows in overview.items():
        _print_table(title, rows)


def print_rows(title: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Rows of one kind, as a JSON document with the one key `title`, or as a table."""
    if as_json:
        typer.echo(json.dumps({title: rows}, ensure_ascii=False, sort_keys=True))
        return
    _print_table(title, rows)


def print_look(look: dict[str, Any], *, as_json: bool) -> None:
    """One look of the watch, on a line of its own: JSON, or time, verdict, generation and why with tabs between."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    if as_json:
        typer.echo(json.dumps({"at": at, **look}, ensure_ascii=False, sort_keys=True))
        return
    typer.echo("\t".join((at, look["verdict"], str(look["generation"]), look["why"])))


def describe_error(console: Console, error: ServiceError, *, as_json: bool) -> None:
    """The error's one sentence, or the same as JSON with its code and reason."""
    if as_json:
        document: dict[str, Any] = {"message": error.message, "code": error.code.value, "param": error.param}
        document["reason"] = error.reason.value if isinstance(error, VerificationError) else None
        if isinstance(error, GateRefused):
            document["refusals"] = [refusal.document() for refusal in error.refusals]
        typer.echo(json.dumps({"error": document}, ensure_ascii=False, sort_keys=True), err=True)
        return
    console.print(f"[bold red]error:[/] {escape(_one_line(error.message))}", soft_wrap=True)


@contextmanager
def progress_bar(*, quiet: bool, of: str = "bytes") -> Iterator[ProgressCallback]:
    """A callback that draws one bar for each phase on standard error; nothing when `quiet` or not on a terminal.

    What is counted is bytes, with their speed, or a number of something else.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield no_progress
        return
    counts = (DownloadColumn(), TransferSpeedColumn()) if of == "bytes" else (MofNCompleteColumn(), TextColumn(of))
    with Progress(TextColumn("{task.description}"), BarColumn(), *counts, console=console, transient=True) as bars:
        tasks = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Names are there to be copied: never cut and never on two lines, whatever the width."""
    console = Console()
    if not console.is_terminal:
        _print_lines(title, rows)
        return
    table = Table(title=title, title_justify="left")
    for column in _COLUMNS[title]:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in _cells(title, row)), style="red" if "error" in row else None)
    if console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum <= console.width:
        console.print(table)
    else:
        _print_list(console, title, rows)


def _print_lines(title: str, rows: list[dict[str, Any]]) -> None:
    typer.echo("# " + "\t".join(_COLUMNS[title]))
    for row in rows:
        typer.echo("\t".join(_cells(title, row)))


def _print_list(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """One cell a line, below the row's name."""
    console.print(title, style="italic", highlight=False)
    for row in rows:
        name, *cells = _cells(title, row)
        console.print(f"  {escape(name)}", style="bold", highlight=False, soft_wrap=True)
        labels = ("error",) if "error" in row else _COLUMNS[title][1:]
        for label, cell in zip(labels, cells, strict=True):
            console.print(f"    {label:12} {escape(cell)}", highlight=False, soft_wrap=True)


def _cells(title: str, row: dict[str, Any]) -> list[str]:
    columns = _COLUMNS[title]
    if "error" in row:
        return [_one_line(str(row[columns[0]])), _one_line(str(row["error"]))]
    return ["" if row[column] is None else _one_line(str(row[column])) for column in columns]


def _one_line(text: str) -> str:
    """The text with its control characters written out: what is shown may forge no line and move no cursor."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
