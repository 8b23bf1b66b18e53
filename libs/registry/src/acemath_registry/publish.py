"""Put a version into the registry: the whole of it becomes visible in one step, or none of it.

Steps, in this order: copy into `staging/` (same file system) → check every file → compute the facts and digests →
manifest → fsync of files and directories → rename into `models/<name>/<version>` → fsync of its parent. A publisher
that is killed at any point leaves at most a folder under `staging/`, which no reader looks at and a later publisher
removes. On an object store the folder is on the publisher's own disk, and the files are uploaded from there, the
manifest after them (`stores.objects`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from acemath_registry.announcing import announced
from acemath_registry.audit import AuditEvent, acting_user, record
from acemath_registry.canary_cases import require_canary
from acemath_registry.collect import withdraw_tombstone
from acemath_registry.durable import (
    copy_file,
    require_space,
    sync_directory,
    write_file,
)
from acemath_registry.errors import Conflict, InvalidRequest, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.facts import compute_facts, require_files
from acemath_registry.files import CONFIG_NAME, OWN_NAMES, hash_files, list_files
from acemath_registry.finite import require_finite
from acemath_registry.layout import Layout
from acemath_registry.loadable import require_loadable
from acemath_registry.manifest import (
    ADAPTER_CONFIG_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    AdapterRecord,
    ComputedFacts,
    FileEntry,
    Manifest,
    ModelKind,
    PublishMetadata,
    encode_manifest,
    version_of,
)
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.refs import ModelRef, check_name
from acemath_registry.signing import SigningKey
from acemath_registry.tensors import read_tensors
from acemath_registry.verify import kept

_log = logging.getLogger(__name__)


def publish(
    layout: Layout,
    source: Path,
    *,
    name: str,
    kind: ModelKind,
    metadata: PublishMetadata,
    by: str | None = None,
    signer: SigningKey | None = None,
    progress: Progress = no_progress,
) -> ModelRef:
    """Publish the checkpoint in `source`; the same content again gives the same version and changes nothing.

    `by` says who publishes, for the audit log; without it, the account that this process runs under. A `signer` signs
    the manifest of a new version before anybody can see it.

    When the version is already there, its manifest stands: other metrics or another canary for the same bytes are
    logged as a warning and not stored.

    Raises:
        InvalidRequest: `name` can not be a name, `source` holds an adapter, or the canary is none of such a version.
        NotFound: `source` is not a directory.
        VerificationError: `source` holds what a version may not hold or no engine can load, or is not of this kind.
        Conflict: the version exists but is damaged, or its upload to a bucket took most of a day: publish again.
        StorageError: the place refused (DiskFull: no space). On a file system nothing is left behind; in a bucket there
            may be objects without a manifest, which are no version and which the next attempt goes on from.
    """
    require_source(source, name, holds=CONFIG_NAME)
    _refuse_adapter(source)
    publisher = by or acting_user()
    with storage_errors(f"publishing {name}", source):
        stored = _already_published(layout, source, name, metadata.step, progress)
    if stored is not None and wanted_again(layout, stored.ref, publisher):
        check_kind(stored.architecture, stored.kind, kind)
        warn_about_difference(stored, metadata)
        return stored.ref

    def fill(staged: Path) -> Manifest:
        _copy(source, staged, progress)
        return _describe(staged, name, kind, metadata, progress)

    manifest, _ = put(layout, name, fill, signer, progress)
    record(layout, AuditEvent.PUBLISH, by=publisher, what=str(manifest.ref))
    return manifest.ref


def check_wish(name: str, kind: ModelKind | str) -> None:
    """Refuse what needs no look at the source.

    Raises:
        InvalidRequest: `name` can not be a name, or `kind` is none.
    """
    check_name(name, what="model name")
    if kind not in list(ModelKind):
        raise InvalidRequest(f"{kind!r} is not a kind of model; it is policy or reward", param="kind")


def require_source(source: Path, name: str, *, holds: str) -> None:
    """Refuse what can not be published under this name, before anything is read; `holds` is for the message.

    Raises:
        InvalidRequest: `name` can not be a name.
        NotFound: `source` is not a directory.
    """
    check_name(name, what="model name")
    if not source.is_dir():
        raise NotFound(
            f"there is no directory {source.name!r} to publish; give the folder that holds {holds}", param="source"
        )


def _refuse_adapter(source: Path) -> None:
    """Raises InvalidRequest for what PEFT saved, which is published with its base."""
    if (source / ADAPTER_CONFIG_NAME).is_file() and not (source / CONFIG_NAME).exists():
        said = "this is a PEFT adapter: give --adapter-of NAME@VERSION, the version that it was trained on"
        raise InvalidRequest(said, param="adapter_of")


def wanted_again(layout: Layout, ref: ModelRef, by: str) -> bool:
    """Take away the mark of a version that was to be removed; False when it is gone already."""
    try:
        with (
            layout.store.opened(layout.version(ref), (MANIFEST_NAME,)) as directory,
            kept(ref, directory),
            storage_errors(f"publishing {ref}", publishing=True),
        ):
            withdraw_tombstone(layout, ref, by=by, why="published again")
    except NotFound:
        return False
    return True


def put(
    layout: Layout, name: str, fill: Callable[[Path], Manifest], signer: SigningKey | None, progress: Progress
) -> tuple[Manifest, Manifest | None]:
    """Make a version visible in one rename: its manifest, and the one that is there already, which then stands.

    Args:
        layout: of the registry.
        name: of the model, for messages.
        fill: puts the version's files into an empty directory and describes them.
        signer: signs the manifest of a new version.
        progress: hears of an upload, where the registry is not on a file system.

    Raises:
        Conflict: the version exists but is damaged, or holds other files.
        StorageError: the file system refused; nothing is left behind.
    """
    with storage_errors(f"publishing {name}", publishing=True), layout.store.staging(layout.staging) as staged:
        manifest = fill(staged)
        _seal(staged, manifest, signer)
        return manifest, _install(layout, staged, manifest, progress)


def _copy(source: Path, staged: Path, progress: Progress) -> None:
    sizes = list_files(source, ignore=OWN_NAMES)
    require_files(set(sizes))
    total = sum(sizes.values())
    require_space(staged, total)
    advance = counter(progress, "copying", total)
    with storage_errors("copying what is published", source):
        for name in sizes:
            copy_file(source / name, staged / name, 0o644, advance)


def _describe(staged: Path, name: str, kind: ModelKind, metadata: PublishMetadata, progress: Progress) -> Manifest:
    # Everything is read from the staged copy: whatever happens to the source meanwhile, manifest and files agree.
    sizes = list_files(staged)
    tensors = read_tensors(staged, sizes)
    facts = compute_facts(staged, set(sizes), tensors)
    check_kind(facts.architecture, facts.kind, kind)
    require_loadable(staged, tensors)
    require_canary(kind, metadata.canary, facts.compatibility.vocab_size)
    require_finite(staged, sizes, progress)
    files = hash_files(staged, sizes, counter(progress, "hashing", sum(sizes.values())))
    return manifest_of(name, facts, metadata, files)


def manifest_of(
    name: str,
    facts: ComputedFacts,
    metadata: PublishMetadata,
    files: tuple[FileEntry, ...],
    adapter: AdapterRecord | None = None,
) -> Manifest:
    """The manifest of a version that is published now; `files` are sorted by path."""
    return Manifest(
        **{field: getattr(facts, field) for field in type(facts).model_fields},
        **{field: getattr(metadata, field) for field in type(metadata).model_fields},
        name=name,
        version=version_of(metadata.step, files),
        files=files,
        adapter=adapter,
        created_at=datetime.now(UTC),
    )


def check_kind(architecture: str, found: ModelKind, asked: ModelKind) -> None:
    """Refuse to publish a model as what it is not.

    Raises:
        VerificationError: WRONG_KIND.
    """
    if found is not asked:
        detail = f"{architecture} is a {found} model, not a {asked}; publish it as that"
        raise VerificationError(RejectReason.WRONG_KIND, detail)


def _seal(staged: Path, manifest: Manifest, signer: SigningKey | None) -> None:
    data = encode_manifest(manifest)
    if signer is not None:
        write_file(staged / SIGNATURE_NAME, signer.sign(manifest.ref, data))
    write_file(staged / MANIFEST_NAME, data)
    sync_directory(staged)


def _install(layout: Layout, staged: Path, manifest: Manifest, progress: Progress) -> Manifest | None:
    with announced(layout, [str(manifest.ref)], [manifest.ref]):
        if layout.store.install(staged, layout.version(manifest.ref), progress):
            return None
    return _check_same(layout, manifest.ref, manifest.files)


def _already_published(layout: Layout, source: Path, name: str, step: int, progress: Progress) -> Manifest | None:
    """The version that holds exactly the source's files, if there is; costs nothing when none has this step."""
    if not any(folder.startswith(f"s{step}-") for folder in layout.store.folders(layout.models / name)):
        return None
    sizes = list_files(source, ignore=OWN_NAMES)
    files = hash_files(source, sizes, counter(progress, "hashing", sum(sizes.values())))
    ref = ModelRef(name, version_of(step, files))
    if not layout.store.has(layout.version(ref)):
        return None
    return _check_same(layout, ref, files)


def _check_same(layout: Layout, ref: ModelRef, files: tuple[FileEntry, ...]) -> Manifest:
    try:
        stored = layout.store.verify_again(ref, layout.version(ref))
    except VerificationError as error:
        raise Conflict(
            f"{ref} is already there but damaged ({error.message}); move it out of the registry, then publish again"
        ) from error
    if set(stored.files) != set(files):
        raise Conflict(f"{ref} is already there with other files (its 12 digits collide); publish with another step")
    return stored


def differences(stored: Manifest, metadata: PublishMetadata) -> list[str]:
    """Names of the fields that only a publisher knows, where a published version says something else."""
    return [field for field in PublishMetadata.model_fields if getattr(stored, field) != getattr(metadata, field)]


def warn_about_difference(stored: Manifest, metadata: PublishMetadata) -> None:
    """Log which of the publisher's fields are not stored, since the version was there with others."""
    different = differences(stored, metadata)
    if different:
        _log.warning(
            "%s is already published; its manifest stands, the new %s is not stored", stored.ref, ", ".join(different)
        )
