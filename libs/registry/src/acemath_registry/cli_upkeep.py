"""`acemath registry gc` and `log`: what may go, and what happened."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from acemath_registry.audit import AuditEntry
from acemath_registry.cli_common import DEFAULT_ROOT, AsJson, Root, errors, existing
from acemath_registry.cli_output import print_rows
from acemath_registry.collect import Action, Retention, Verdict

_HOUR_S = 3600.0


def gc(
    by: Annotated[str, typer.Option("--by", help="Who removes, for the audit log.", default_factory=getpass.getuser)],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without this it is only shown.")] = False,
    newest: Annotated[int, typer.Option("--newest", min=0, help="Keep so many newest versions of each model.")] = 3,
    age_hours: Annotated[float, typer.Option("--age-hours", min=0, help="Keep what is younger.")] = 24.0,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="Hours from marking a version to removing it.")
    ] = 24.0,
    history: Annotated[
        int, typer.Option("--history", min=1, help="Keep the versions of so many last releases of each channel.")
    ] = 5,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Show which versions nobody needs; with --apply mark them, and remove those marked longer ago than the grace time.

    Never removed is what a channel points at, pointed at lately or would roll back to, what a status record or a lease
    names, and what is being read. What a publisher left that was killed goes, too, when it is older than --age-hours,
    and than a day in any case.
    """
    with errors(as_json):
        retention = Retention(newest, age_hours * _HOUR_S, grace_hours * _HOUR_S, history)
        verdicts = existing(root).collect(retention, by=by, apply=apply)
    print_rows("collected" if apply else "planned", [_verdict_row(one) for one in verdicts], as_json=as_json)
    if not as_json:
        _say_sum(verdicts, apply)


def log(
    target: Annotated[str | None, typer.Argument(help="Only of this version, channel or gateway.")] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="At most so many, the newest last.")] = 50,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Show who published, promoted, rolled back, rejected and removed what, and when."""
    with errors(as_json):
        entries = [entry for entry in existing(root).log() if target in (None, entry.what)][-last:]
    print_rows("log", [_entry_row(entry) for entry in entries], as_json=as_json)


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "model": str(verdict.ref),
        "action": verdict.action.value,
        "bytes": verdict.size,
        "why": verdict.why,
        "done": verdict.done,
    }


def _entry_row(entry: AuditEntry) -> dict[str, Any]:
    document = entry.model_dump(mode="json", by_alias=True)
    return document | {"at": entry.at.isoformat(timespec="seconds")}


def _say_sum(verdicts: list[Verdict], apply: bool) -> None:
    going = [verdict for verdict in verdicts if verdict.action is Action.REMOVE]
    marked = sum(verdict.action is Action.MARK for verdict in verdicts)
    words = ("removed", "marked") if apply else ("would be removed", "would be marked; --apply does it")
    size = sum(verdict.size for verdict in going) / 1e6
    typer.echo(f"{len(going)} of {len(verdicts)} versions {words[0]} ({size:.0f} MB), {marked} {words[1]}", err=True)
