"""`acemath registry gc` and `log`: what may go, and what happened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from acemath_registry.audit import AuditEntry, acting_user
from acemath_registry.cli_common import DEFAULT_ROOT, AsJson, Root, errors, existing
from acemath_registry.cli_output import print_overview, print_rows, progress_bar
from acemath_registry.collect import Action, Retention, Verdict
from acemath_registry.stores import Leftover

_HOUR_S = 3600.0


def gc(
    by: Annotated[str, typer.Option("--by", help="Who removes, for the audit log.", default_factory=acting_user)],
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
    names (of a policy agent or reward service: one of the last day or --age-hours), and what is being read. What a
    publisher left that was killed goes, too, when it is older than --age-hours, and than a day in any case; what is
    left of it now is shown with the time until which it stays.
    """
    with errors(as_json):
        retention = Retention(newest, age_hours * _HOUR_S, grace_hours * _HOUR_S, history)
        verdicts = list[Verdict]()
        try:
            with progress_bar(quiet=as_json, of="versions") as progress:
                for verdict in existing(root).collecting(retention, by=by, apply=apply, progress=progress):
                    verdicts.append(verdict)
            left = existing(root).leftovers(retention)
        except BaseException:  # whatever ends it: what was removed by then has to be said
            if verdicts:
                _say(verdicts, [], apply, as_json)
            raise
    _say(verdicts, left, apply, as_json)


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


def _left_row(left: Leftover) -> dict[str, Any]:
    until = datetime.fromtimestamp(left.until, UTC).isoformat(timespec="seconds")
    return {"path": left.path, "bytes": left.size, "until": until}


def _say(verdicts: list[Verdict], left: list[Leftover], apply: bool, as_json: bool) -> None:
    tables = {"collected" if apply else "planned": [_verdict_row(one) for one in verdicts]}
    if left or as_json:
        tables["left"] = [_left_row(one) for one in left]
    print_overview(tables, as_json=as_json)
    if not as_json:
        _say_sum(verdicts, apply)


def _say_sum(verdicts: list[Verdict], apply: bool) -> None:
    going = [verdict for verdict in verdicts if verdict.action is Action.REMOVE]
    marked = sum(verdict.action is Action.MARK for verdict in verdicts)
    words = ("removed", "marked") if apply else ("would be removed", "would be marked; --apply does it")
    size = sum(verdict.size for verdict in going) / 1e6
    typer.echo(f"{len(going)} of {len(verdicts)} versions {words[0]} ({size:.0f} MB), {marked} {words[1]}", err=True)
