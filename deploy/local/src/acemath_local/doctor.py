"""`acemath doctor`: how this checkout's running stack is; when none runs, what this machine lacks to start one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from acemath_local.console import Console
from acemath_local.lock import is_running
from acemath_local.preflight import (
    SETUP_GIB,
    Finding,
    check_compiler,
    check_prometheus,
    machine_checks,
    stack_checks,
)
from acemath_local.settings import LocalSettings, LocalSettingsError
from acemath_local.status import running_checks

app = typer.Typer(help="How the running stack is, or what this machine needs to run one.", invoke_without_command=True)


@app.callback()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False) -> None:
    """Ask every service of the running stack, else check this machine; exit 1 when something needs doing."""
    try:
        settings = LocalSettings.from_env()
    except LocalSettingsError as error:
        raise typer.BadParameter(str(error)) from error
    required, optional = _checks(settings)
    ok = all(finding.ok for finding in required)
    if as_json:
        typer.echo(json.dumps({"ok": ok, "checks": [dataclasses.asdict(finding) for finding in required + optional]}))
    else:
        for finding in required + optional:
            Console().line(f"  {'✓' if finding.ok else '✗'} {finding.name:14} {finding.advice or finding.seen}")
    raise typer.Exit(0 if ok else 1)


def _checks(settings: LocalSettings) -> tuple[list[Finding], list[Finding]]:
    """What must be well, and what is good to know."""
    if is_running(settings.state_dir):
        return running_checks(settings)
    need = 0.5 if Path(".venv").exists() else SETUP_GIB
    looked = Finding("looks at", f"{settings.state_dir}: no stack of it runs")
    return [looked, *machine_checks(), *stack_checks(settings, need)], [check_prometheus(settings), check_compiler()]
