"""`acemath doctor`: the preflight as a command of the CLI."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from acemath_local.console import Console
from acemath_local.preflight import SETUP_GIB, check_compiler, machine_checks, stack_checks
from acemath_local.settings import LocalSettings, LocalSettingsError

app = typer.Typer(help="Look at what this machine needs to run the stack.", invoke_without_command=True)


@app.callback()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False) -> None:
    """Check Python, libnuma, disk, ports and the compiler; exit 1 when something is missing."""
    try:
        settings = LocalSettings.from_env()
    except LocalSettingsError as error:
        raise typer.BadParameter(str(error)) from error
    need = 0.5 if Path(".venv").exists() else SETUP_GIB
    required = [*machine_checks(), *stack_checks(settings, need)]
    optional = [check_compiler()]
    ok = all(finding.ok for finding in required)
    if as_json:
        typer.echo(json.dumps({"ok": ok, "checks": [dataclasses.asdict(finding) for finding in required + optional]}))
    else:
        for finding in required + optional:
            Console().line(f"  {'✓' if finding.ok else '✗'} {finding.name:14} {finding.advice or finding.seen}")
    raise typer.Exit(0 if ok else 1)
