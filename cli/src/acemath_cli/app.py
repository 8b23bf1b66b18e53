"""Gathers the subcommands and runs one."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import typer

from acemath_cli.solve import solve

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
    app.command("solve")(solve)
    for entry in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        app.add_typer(_load(entry), name=entry.name)
    return app


def main() -> None:
    """The console script."""
    build_app()()


def _load(entry: EntryPoint) -> typer.Typer:
    try:
        loaded = entry.load()
    except ImportError as error:
        return _unavailable(entry, error)
    if not isinstance(loaded, typer.Typer):
        raise TypeError(f"entry point {entry.name} of {GROUP} ({entry.value}) is not a typer.Typer")
    return loaded


def _unavailable(entry: EntryPoint, error: ImportError) -> typer.Typer:
    reason = f"needs {error.name}, which is not installed" if error.name else str(error)
    app = typer.Typer(help=f"not available: {reason}", invoke_without_command=True)

    @app.callback(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def explain() -> None:
        sys.stderr.write(f"acemath {entry.name}: {reason}\n")
        raise typer.Exit(1)

    return app
