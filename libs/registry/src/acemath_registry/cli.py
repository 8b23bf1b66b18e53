"""`acemath registry …`: publish, promote, roll back, list, show, verify; for people and, with `--json`, for scripts.

Results go to standard output, progress and errors to standard error; the exit status is 1 when something was refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from acemath_core.errors import InvalidRequest, ServiceError
from acemath_registry import cli_canary, cli_channels, cli_gates, cli_upkeep, cli_watch
from acemath_registry.audit import acting_user
from acemath_registry.channels import Channel
from acemath_registry.cli_checks import require_directory, verify_each
from acemath_registry.cli_common import DEFAULT_ROOT, AsJson, Root, SignKey, errors, existing, note_new, require_channel
from acemath_registry.cli_metadata import described, metadata_of
from acemath_registry.cli_output import print_document, print_overview, print_rows, progress_bar
from acemath_registry.errors import NotFound
from acemath_registry.following import forget_gateway
from acemath_registry.hub import is_hub_source
from acemath_registry.manifest import ModelKind
from acemath_registry.refs import RELEASE_PATTERN, ModelRef
from acemath_registry.registry import Registry
from acemath_registry.releases import Release, ReleaseMember
from acemath_registry.signing import SigningKey, TrustedKeys

app = typer.Typer(no_args_is_help=True, help="Model versions, releases and channels.")
app.command()(cli_canary.canary)
app.command()(cli_upkeep.gc)
app.command()(cli_upkeep.log)
app.add_typer(cli_gates.app, name="gates")
app.add_typer(cli_watch.app, name="watch")

_NO_CANARY = (
    "no canary: replicas cannot tell whether their engine computes what was trained; `acemath train canary SOURCE` "
    "computes one for --metadata, of an adapter's merged model or of a checkpoint of most classes (with another "
    "--step: what is published stays as it is)"
)
Witness = Annotated[str, typer.Option("--by", help="Who says that the gateway has ended.", default_factory=acting_user)]
Target = Annotated[str, typer.Argument(help="A version (name@version), a release (r-…) or a channel.")]


@app.command()
def publish(
    source: Annotated[
        str,
        typer.Argument(help="A checkpoint directory, or hf://owner/name@revision."),
    ],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    kind: Annotated[ModelKind, typer.Option(help="What the model is for.")],
    step: Annotated[int | None, typer.Option(help="Training step; 0 for a base model.", min=0)] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX expression of the weights' licence.")] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="JSON file: step, licence, parent, base_model, training, metrics, canary, tools."),
    ] = None,
    adapter_of: Annotated[
        str | None,
        typer.Option(help="name@version: the directory holds a LoRA of PEFT on it; served is what the merge gives."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who publishes, for the audit log; else the account's name.")] = None,
    sign_key: SignKey = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint as an immutable version; the same content again changes nothing."""
    with errors(as_json), progress_bar(quiet=as_json) as progress:
        options, registry = {"step": step, "licence": licence}, Registry(root)
        new = not registry.exists()
        signer = None if sign_key is None else SigningKey.read(sign_key)
        base = None if adapter_of is None else ModelRef.parse(adapter_of)
        if base is not None and is_hub_source(source):
            raise InvalidRequest("an adapter is published from a directory; download it first", param="adapter_of")
        if is_hub_source(source):
            describe = partial(described, metadata, options)
            ref = registry.publish_from_hub(
                source, name=name, kind=kind, describe=describe, by=by, signer=signer, progress=progress
            )
        else:
            require_directory(source)
            given = metadata_of(metadata, options)
            ref = registry.publish(
                source, name=name, kind=kind, metadata=given, adapter_of=base, by=by, signer=signer, progress=progress
            )
        document = {"model": str(ref), "path": registry.where(ref)}
        checkable = registry.manifest(ref).canary is not None
    print_document(document, as_json=as_json)
    if new:
        note_new(registry)
    if not checkable:
        typer.echo(_NO_CANARY, err=True)


app.command()(cli_channels.promote)
app.command()(cli_channels.rollback)


@app.command(name="list")
def list_all(root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """List every version, release and channel; one that can not be read is shown with what is wrong."""
    with errors(as_json):
        overview = _overview(existing(root))
    print_overview(overview, as_json=as_json)


@app.command()
def show(target: Target, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show a version's manifest, a release's two versions, or where a channel points."""
    with errors(as_json):
        document = _show(existing(root), target)
    print_document(document, as_json=as_json)


@app.command()
def verify(
    target: Target,
    directory: Annotated[Path | None, typer.Option(help="Check this copy of a version instead.")] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="PEM file of public keys, one of which must have signed it.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a version, or of both versions of a release or channel."""
    with errors(as_json), progress_bar(quiet=as_json) as progress:
        if directory is None:
            existing(root)  # a copy is checked without a registry too
        registry = Registry(root, trusted=None if keys is None else TrustedKeys.read(keys))
        if directory is not None and "@" not in target:
            raise InvalidRequest("--directory holds one version; name it as name@version", param="directory")
        if directory is not None and not directory.is_dir():
            said = f"there is no directory {directory}; name the copy's own directory"
            raise NotFound(said, param="directory")
        verified = verify_each(
            (ref, partial(registry.verify, ref, directory, manifest_sha256=digest, progress=progress))
            for ref, digest in _versions_of(registry, target)
        )
        signed = None if keys is None else True  # whether it is signed is not known where no key was given
        documents = [{"model": str(m.ref), "files": len(m.files), "bytes": m.size, "signed": signed} for m in verified]
    print_rows("verified", documents, as_json=as_json)


@app.command()
def sign(
    target: Target,
    key: Annotated[Path, typer.Option("--sign-key", help="PEM file (mode 0600) of the Ed25519 key.")],
    by: Annotated[str, typer.Option("--by", help="Who signs, for the audit log.", default_factory=acting_user)],
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Sign a version, or both versions of a release or channel, as they are now, after checking every byte."""
    with errors(as_json), progress_bar(quiet=as_json) as progress:
        registry, signer = existing(root), SigningKey.read(key)
        refs = [ref for ref, _ in _versions_of(registry, target)]
        replaced = {str(ref): registry.sign(ref, signer, by=by, progress=progress) for ref in refs}
    print_document({"signed": [str(ref) for ref in refs], "key": signer.id}, as_json=as_json)
    for signed, other in replaced.items():
        if other is not None:
            typer.echo(f"{signed}: replaces the signature by key {other}", err=True)


@app.command(name="forget-gateway")
def forget(
    instance: Annotated[str, typer.Argument(help="Name of the gateway, as the slot's reason gives it.")],
    by: Witness,
    max_age: Annotated[
        float, typer.Option("--max-age", min=30, help="Seconds; a younger record belongs to a living gateway.")
    ] = 60.0,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Say that a gateway was killed for good: nobody waits for it any more. Refused while its record is fresh."""
    with errors(as_json):
        record = forget_gateway(existing(root), instance, by=by, max_age_seconds=max_age)
    print_document({"forgotten": instance, "by": by, "record": record}, as_json=as_json)


def _channel_document(name: str, channel: Channel) -> dict[str, Any]:
    return {"channel": name, **channel.document()}


def _release_document(release: Release) -> dict[str, Any]:
    return {"release": release.id, "policy": str(release.policy.ref), "reward": str(release.reward.ref)}


def _show(registry: Registry, target: str) -> dict[str, Any]:
    if "@" in target:
        return registry.manifest(ModelRef.parse(target)).model_dump(mode="json")
    if RELEASE_PATTERN.fullmatch(target):
        return _release_document(registry.release(target))
    _channel(registry, target)  # what a model's name in its place is told
    return _channel_row(registry, target)


def _channel_row(registry: Registry, target: str) -> dict[str, Any]:
    """Of a channel, whatever its name looks like."""
    channel, served = registry.channel(target), registry.served(target)
    document = {**_release_document(registry.release(channel.release)), **_channel_document(target, channel)}
    return document | {"served": None if served is None else served.release}  # what gateways began to serve last


def _channel(registry: Registry, name: str) -> Channel:
    try:
        return registry.channel(name)
    except NotFound as error:
        versions = [str(ref) for ref in registry.versions() if ref.name == name]
        if not versions:
            require_channel(registry, name)
            raise
        said = f"{name} is a model, not a channel; name a version of it as NAME@VERSION, for instance {versions[-1]}"
        raise NotFound(said) from error


def _versions_of(registry: Registry, target: str) -> list[tuple[ModelRef, str | None]]:
    if "@" in target:
        return [(ModelRef.parse(target), None)]
    release_id = target if RELEASE_PATTERN.fullmatch(target) else _channel(registry, target).release
    release = registry.release(release_id)
    members: tuple[ReleaseMember, ...] = (release.policy, release.reward)
    return [(member.ref, member.manifest_sha256) for member in members]


def _overview(registry: Registry) -> dict[str, list[dict[str, Any]]]:
    return {
        "versions": [_row("model", str(ref), registry, _summary) for ref in registry.versions()],
        "releases": [_row("release", one, registry, _show) for one in registry.release_ids()],
        "channels": [_row("channel", one, registry, _channel_row) for one in registry.channel_names()],
    }


def _row(key: str, name: str, registry: Registry, read: Callable[[Registry, str], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {key: name, **read(registry, name)}
    except ServiceError as error:
        return {key: name, "error": error.message}


def _summary(registry: Registry, target: str) -> dict[str, Any]:
    manifest = registry.manifest(ModelRef.parse(target))
    return {
        "kind": manifest.kind.value,
        "architecture": manifest.architecture,
        "dtype": manifest.dtype,
        "parameters": manifest.tensors.parameters,
        "bytes": manifest.stored_size,
        "adapter_of": None if manifest.adapter is None else manifest.adapter.base,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
    }
