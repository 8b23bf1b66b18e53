"""Put a version into the registry: the whole of it becomes visible in one rename, or none of it.

Steps, in this order: copy into `staging/` (same file system) → check every file → compute the facts and digests →
manifest → fsync of files and directories → rename into `models/<name>/<version>` → fsync of its parent. A publisher
that is killed at any point leaves at most a folder under `staging/`, which no reader looks at and a later publisher
removes.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from acemath_registry.audit import AuditEvent, acting_user, record
from acemath_registry.collect import withdraw_tombstone
from acemath_registry.durable import (
    copy_file,
    ensure_directory,
    exclusive_lock,
    is_locked,
    make_directory,
    remove_tree,
    rename_directory,
    require_space,
    sync_directory,
    write_file,
)
from acemath_registry.errors import Conflict, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.facts import compute_facts, require_files
from acemath_registry.files import OWN_NAMES, hash_files, list_files
from acemath_registry.finite import require_finite
from acemath_registry.layout import Layout
from acemath_registry.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
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
from acemath_registry.verify import kept, verify_directory

_log = logging.getLogger(__name__)

STALE_STAGING_S: Final = 24 * 3600.0
"""Age at which a dead publisher's folder goes: a living one holds its lock, but not every mount shares locks."""

_LOCK: Final = "publisher.lock"


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
        InvalidRequest: `name` can not be a name.
        NotFound: `source` is not a directory.
        VerificationError: `source` holds what a version may not hold, or is not of this kind.
        Conflict: the version exists but is damaged.
        StorageError: the file system refused (DiskFull: no space); nothing is left behind.
    """
    check_name(name, what="model name")
    if not source.is_dir():
        raise NotFound(
            f"there is no directory {source.name!r} to publish; give the folder that holds config.json", param="source"
        )
    publisher = by or acting_user()
    stored = _already_published(layout, source, name, metadata.step, progress)
    if stored is not None and _wanted_again(layout, stored.ref, publisher):
        _check_kind(stored.architecture, stored.kind, kind)
        _warn_about_difference(stored, metadata)
        return stored.ref
    ref = _publish_new(layout, source, name, kind, metadata, signer, progress)
    record(layout, AuditEvent.PUBLISH, by=publisher, what=str(ref))
    return ref


def _wanted_again(layout: Layout, ref: ModelRef, by: str) -> bool:
    """Take away the mark of a version that was to be removed; False when it is gone already."""
    try:
        with kept(ref, layout.version(ref)), storage_errors(f"publishing {ref}"):
            withdraw_tombstone(layout, ref, by=by, why="published again")
    except NotFound:
        return False
    return True


def _publish_new(
    layout: Layout,
    source: Path,
    name: str,
    kind: ModelKind,
    metadata: PublishMetadata,
    signer: SigningKey | None,
    progress: Progress,
) -> ModelRef:
    with storage_errors(f"publishing {name}"):
        ensure_directory(layout.staging)
        sweep_staging(layout.staging)
        with staging_folder(layout.staging) as staged:
            _copy(source, staged, progress)
            manifest = _describe(staged, name, kind, metadata, progress)
            _seal(staged, manifest, signer)
            return _install(layout, staged, manifest)


def sweep_staging(staging: Path, *, stale_after_s: float = STALE_STAGING_S) -> None:
    """Remove what killed publishers left: folders that are old and whose lock nobody holds.

    Raises:
        OSError: `staging` can not be listed.
    """
    for folder in sorted(staging.iterdir()):
        if _age_s(folder) > stale_after_s and not is_locked(folder / _LOCK):
            remove_tree(folder)


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return -1.0  # its publisher has finished since we listed it


@contextmanager
def staging_folder(staging: Path) -> Iterator[Path]:
    """A private folder below `staging` for as long as the block runs; no sweep takes it, and nothing is left of it."""
    folder = staging / uuid.uuid4().hex
    make_directory(folder, 0o700)
    try:
        with exclusive_lock(folder / _LOCK):
            make_directory(folder / "version", 0o755)
            yield folder / "version"
    finally:
        remove_tree(folder)


def _copy(source: Path, staged: Path, progress: Progress) -> None:
    sizes = list_files(source, ignore=OWN_NAMES)
    require_files(set(sizes))
    total = sum(sizes.values())
    require_space(staged, total)
    advance = counter(progress, "copying", total)
    for name in sizes:
        copy_file(source / name, staged / name, 0o644, advance)


def _describe(staged: Path, name: str, kind: ModelKind, metadata: PublishMetadata, progress: Progress) -> Manifest:
    # Everything is read from the staged copy: whatever happens to the source meanwhile, manifest and files agree.
    sizes = list_files(staged)
    facts = compute_facts(staged, set(sizes), read_tensors(staged, sizes))
    _check_kind(facts.architecture, facts.kind, kind)
    require_finite(staged, sizes)
    files = hash_files(staged, sizes, counter(progress, "hashing", sum(sizes.values())))
    return Manifest(
        **{field: getattr(facts, field) for field in type(facts).model_fields},
        **{field: getattr(metadata, field) for field in type(metadata).model_fields},
        name=name,
        version=version_of(metadata.step, files),
        files=files,
        created_at=datetime.now(UTC),
    )


def _check_kind(architecture: str, found: ModelKind, asked: ModelKind) -> None:
    if found is not asked:
        detail = f"{architecture} is a {found} model, not a {asked}; publish it as that"
        raise VerificationError(RejectReason.WRONG_KIND, detail)


def _seal(staged: Path, manifest: Manifest, signer: SigningKey | None) -> None:
    data = encode_manifest(manifest)
    if signer is not None:
        write_file(staged / SIGNATURE_NAME, signer.sign(manifest.ref, data))
    write_file(staged / MANIFEST_NAME, data)
    sync_directory(staged)


def _install(layout: Layout, staged: Path, manifest: Manifest) -> ModelRef:
    target = layout.version(manifest.ref)
    ensure_directory(target.parent)
    if not rename_directory(staged, target):
        _check_same(layout, manifest.ref, manifest.files)
    return manifest.ref


def _already_published(layout: Layout, source: Path, name: str, step: int, progress: Progress) -> Manifest | None:
    """The version that holds exactly the source's files, if there is; costs nothing when none has this step."""
    parent = layout.models / name
    if not any(parent.glob(f"s{step}-*")):
        return None
    sizes = list_files(source, ignore=OWN_NAMES)
    files = hash_files(source, sizes, counter(progress, "hashing", sum(sizes.values())))
    ref = ModelRef(name, version_of(step, files))
    if not layout.version(ref).exists():
        return None
    return _check_same(layout, ref, files)


def _check_same(layout: Layout, ref: ModelRef, files: tuple[FileEntry, ...]) -> Manifest:
    try:
        stored = verify_directory(ref, layout.version(ref))
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


def _warn_about_difference(stored: Manifest, metadata: PublishMetadata) -> None:
    different = differences(stored, metadata)
    if different:
        _log.warning(
            "%s is already published; its manifest stands, the new %s is not stored", stored.ref, ", ".join(different)
        )
