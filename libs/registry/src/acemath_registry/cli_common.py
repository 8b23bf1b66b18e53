"""What the commands of `acemath registry` share: their options, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from acemath_core.errors import InvalidRequest, ServiceError
from acemath_registry.audit import acting_user
from acemath_registry.cli_output import describe_error
from acemath_registry.errors import NotFound
from acemath_registry.lengths import shorter_versions
from acemath_registry.refs import absent_channel
from acemath_registry.registry import Registry

Root = Annotated[
    str,
    typer.Option(
        "--root",
        envvar="ACEMATH_REGISTRY__ROOT",
        help="The registry: a directory, or s3://bucket/prefix.",
        show_default=True,
    ),
]
ChannelName = Annotated[str, typer.Argument(help="Name of the channel.")]
By = Annotated[str, typer.Option("--by", help="Who, for the audit log.", default_factory=acting_user)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
SignKey = Annotated[
    Path | None, typer.Option("--sign-key", help="PEM file (mode 0600) of the Ed25519 key that signs the version.")
]
DEFAULT_ROOT = ".local/registry"


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Say what went wrong in one sentence (or as JSON) and end with status 1."""
    try:
        yield
    except ServiceError as error:
        describe_error(Console(stderr=True), error, as_json=as_json)
        raise typer.Exit(1) from error


def override_of(override_gates: bool, reason: str | None) -> str | None:
    """Why gates are overridden; None where they are obeyed.

    Raises:
        InvalidRequest: they are to be overridden without a reason.
    """
    if override_gates and reason is None:
        raise InvalidRequest("--override-gates needs --reason; say why", param="reason")
    return reason if override_gates else None


def misfit(error: ValidationError, param: str) -> InvalidRequest:
    """What an option's value does not fit: names the field, or else the option, `param`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or param
    return InvalidRequest(f"{where}: {first['msg']}; correct it", param=param)


def existing(root: str) -> Registry:
    """The registry at `root`.

    Raises:
        InvalidRequest: it can not be a registry's address.
        NotFound: there is no such directory or bucket, or nothing in it.
        StorageError: the object store refused.
    """
    registry = Registry(root)
    if not registry.exists():
        raise NotFound(f"there is no registry at {registry.address}; give --root, or publish something first")
    return registry


def note_new(registry: Registry) -> None:
    """Say on standard error where a registry was made: a relative or mistyped root makes one anywhere."""
    where = registry.address if "://" in registry.address else registry.root.absolute()
    typer.echo(f"made a new registry at {where}", err=True)


def warn_of_shorter(registry: Registry, before: str | None, after: str) -> None:
    """Say on standard error which requests were answered by the release before, and will be refused by this one."""
    for said in () if before is None else shorter_versions(registry, before, after):
        typer.echo(f"warning: {said}", err=True)


def no_channel(registry: Registry, name: str) -> str | None:
    """That there is no such channel, and which there are; None where there is. What people mistype is told at once."""
    return absent_channel(name, registry.channel_names())


def require_channel(registry: Registry, name: str) -> None:
    """Raises NotFound where there is no such channel."""
    missing = no_channel(registry, name)
    if missing is not None:
        begin = f"acemath registry promote {name} --new"
        raise NotFound(f"{missing}; correct its name, or begin it: {begin}", param="channel")


def note_missing(registry: Registry, name: str) -> None:
    """Say on standard error that there is no such channel, where there may be one later."""
    missing = no_channel(registry, name)
    if missing is not None:
        typer.echo(f"note: {missing}; what is declared for it holds from its first promotion", err=True)
