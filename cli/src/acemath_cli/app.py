"""Gathers the subcommands and runs one."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import typer

from acemath_cli.arguments import ProblemCommand
from acemath_cli.entry import main
from acemath_cli.jobs import app as jobs
from acemath_cli.keys import app as keys
from acemath_cli.solve import solve

__all__ = ["GROUP", "build_app", "main"]

GROUP = "acemath.commands"


def build_app() -> typer.Typer:
    """The whole command: our own subcommands, then those of every installed distribution, by name.

    A distribution whose command cannot be imported (an extra is missing) shows as a command that says so: the others
    stay usable.
    """
    app = typer.Typer(
        name="acemath",
        help="AceMath Serving: ask it, look after it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.command("solve", cls=ProblemCommand)(solve)
    app.add_typer(jobs, name="jobs")
    app.add_typer(keys, name="keys")
    for entry in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        _add(app, entry)
    return app


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    try:
        loaded = entry.load()
    except ImportError as error:
        _add_unavailable(app, entry.name, f"needs {error.name}, which is not installed" if error.name else str(error))
        return
    if not isinstance(loaded, typer.Typer):
        raise TypeError(f"entry point {entry.name} of {GROUP} ({entry.value}) is not a typer.Typer")
    app.add_typer(loaded, name=entry.name)


def _add_unavailable(app: typer.Typer, name: str, reason: str) -> None:
    takes_anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name, help=f"not available: {reason}", context_settings=takes_anything)
    def explain() -> None:
        sys.stderr.write(f"acemath {name}: {reason}\n")
        raise typer.Exit(1)
