"""How a command fails: one line on standard error that names the command, and exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from acemath_cli.client import AskError
from acemath_core.settings import SettingsError


@contextmanager
def failing_as(command: str) -> Iterator[None]:
    """Say what went wrong in the block as that of `acemath <command>`; raises `typer.Exit`."""
    try:
        yield
    except (AskError, SettingsError) as error:
        raise _said(command, str(error)) from error
    except ValidationError as error:
        found = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise _said(command, "; ".join(found)) from error


def _said(command: str, message: str) -> typer.Exit:
    typer.echo(f"acemath {command}: {message}", err=True)
    return typer.Exit(1)
