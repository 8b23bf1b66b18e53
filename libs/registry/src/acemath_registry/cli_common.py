"""What the commands of `acemath registry` share: their options, and how they fail."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from acemath_core.errors import InvalidRequest, ServiceError
from acemath_registry.cli_output import describe_error
from acemath_registry.errors import NotFound
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
By = Annotated[str, typer.Option("--by", help="Who, for the audit log.", default_factory=getpass.getuser)]
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
