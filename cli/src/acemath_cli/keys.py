"""`acemath keys`: make, list, change and revoke the API keys of a running gateway.

It takes an admin key from `--key-file`, or else from ACEMATH_CLI__API_KEY; the first one is where the gateway's log
says. Results go to standard output, errors to standard error with exit status 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acemath_cli.arguments import AsJson, Url, gateway_and_key
from acemath_cli.client import AskError, ask
from acemath_cli.failures import failing_as
from acemath_cli.render import print_json
from acemath_core.admin import KeyChange, KeyInfo, KeyList, KeyRequest, KeyScope, NewKey, Quotas

app = typer.Typer(no_args_is_help=True, help="API keys of a gateway: make, list, change, revoke. Needs an admin key.")

_PATH = "/admin/v1/keys"
_COLUMNS = ["id", "name", "ends in", "scopes", "quotas", "made", "revoked"]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="file (mode 0600) with an admin key; default: ACEMATH_CLI__API_KEY")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="who gets the key; for people")],
    scope: Annotated[list[KeyScope] | None, typer.Option(help="what it opens; may be given several times")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="quota: solves that are started")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="quota: tokens generated, of every candidate")] = None,
    sequences_in_flight: Annotated[int | None, typer.Option(help="quota: candidates being made at once")] = None,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once; the gateway keeps only its hash. Without --scope it opens solve and jobs."""
    with failing_as("keys create"):
        quotas = Quotas(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            sequences_in_flight=sequences_in_flight,
        )
        wanted = KeyRequest(name=name, scopes=tuple(scope or (KeyScope.SOLVE, KeyScope.JOBS)), quotas=quotas)
        made = NewKey.model_validate(ask(*gateway_and_key(url, key_file), "POST", _PATH, wanted))
    if as_json:
        print_json(made)
    else:
        typer.echo(f"id      {made.id}\nscopes  {', '.join(made.scopes)}\nquotas  {_quotas(made.quotas)}")
        typer.echo(f"key     {made.key}\nWrite the key down: it is not shown again.")


@app.command(name="list")
def every(url: Url = None, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """List the keys, the newest first; the revoked ones for 90 days."""
    with failing_as("keys list"):
        found = KeyList.model_validate(ask(*gateway_and_key(url, key_file), "GET", _PATH))
    if as_json:
        print_json(found)
        return
    console = Console()
    if not console.is_terminal:  # names are there to be copied: never cut and never on two lines
        typer.echo("\n".join("\t".join(cells) for cells in (_COLUMNS, *map(_cells, found.data))))
        return
    table = Table(*_COLUMNS)
    for key in found.data:
        table.add_row(*(escape(cell) for cell in _cells(key)), style="dim" if key.revoked_at else None)
    console.print(table)


@app.command()
def change(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="such as key-0123456789abcdef; `acemath keys list`")],
    name: Annotated[str | None, typer.Option(help="the new name")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="quota; 0 takes it away")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help="quota; 0 takes it away")] = None,
    sequences_in_flight: Annotated[int | None, typer.Option(min=0, help="quota; 0 takes it away")] = None,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Change a key's name or quotas; the rest stays. Every other gateway knows within KEY_CACHE_SECONDS (5)."""
    named = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "sequences_in_flight": sequences_in_flight,
    }
    quotas = {quota: value or None for quota, value in named.items() if value is not None}
    with failing_as("keys change"):
        wanted = KeyChange.model_validate(({"name": name} if name else {}) | ({"quotas": quotas} if quotas else {}))
        path = f"{_PATH}/{_as_segment(key_id)}"
        now = KeyInfo.model_validate(ask(*gateway_and_key(url, key_file), "PATCH", path, wanted))
    if as_json:
        print_json(now)
    else:
        typer.echo(f"{now.id} ({now.name}): quotas {_quotas(now.quotas)}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="such as key-0123456789abcdef; `acemath keys list`")],
    url: Url = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key for ever. Every other gateway refuses it within KEY_CACHE_SECONDS (5)."""
    with failing_as("keys revoke"):
        path = f"{_PATH}/{_as_segment(key_id)}"
        gone = KeyInfo.model_validate(ask(*gateway_and_key(url, key_file), "DELETE", path))
    if as_json:
        print_json(gone)
    else:
        typer.echo(f"revoked {gone.id} ({gone.name})")


def _as_segment(key_id: str) -> str:
    if not key_id.removeprefix("key-").isalnum():
        raise AskError(f"{key_id!r} is not the id of a key; one looks like key-0123456789abcdef")
    return key_id


def _cells(key: KeyInfo) -> list[str]:
    made, revoked = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.revoked_at))
    return [key.id, key.name, key.last_four, ", ".join(key.scopes), _quotas(key.quotas), made, revoked]


def _quotas(quotas: Quotas) -> str:
    said = {
        "requests/min": quotas.requests_per_minute,
        "tokens/min": quotas.tokens_per_minute,
        "in flight": quotas.sequences_in_flight,
    }
    return ", ".join(f"{value} {name}" for name, value in said.items() if value is not None) or "none"
