"""A private copy of a version: what a server loads is what was hashed, whatever happens to the shared mount."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Final

from acemath_registry.adapters.stored import copy_merged
from acemath_registry.durable import (
    copy_file,
    ensure_directory,
    exclusive_lock,
    make_directory,
    remove_tree,
    rename_directory,
    require_space,
    sync_directory,
)
from acemath_registry.errors import Conflict, NotFound, StorageError, VerificationError, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.manifest import SIGNATURE_NAME, Manifest
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.signing import TrustedKeys
from acemath_registry.stores import DISK, Store
from acemath_registry.verify import kept, read_manifest, verify_directory

_log = logging.getLogger(__name__)

_Check = Callable[[Path], object]
COPY_LOCK_TIMEOUT_S: Final = 1800.0
"""How long one process waits for another that copies the same version into the same cache."""


def private_copy(
    ref: ModelRef,
    source: PurePath,
    cache: Path,
    *,
    store: Store = DISK,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    progress: Progress = no_progress,
    lock_timeout_s: float = COPY_LOCK_TIMEOUT_S,
) -> Path:
    """The directory `<cache>/<name>/<version>` with a verified copy of `source`, made now or found and verified.

    `source` is where the version lies in `store`. The copy is always whole: an adapter version is merged with its base,
    which is looked for beside it.

    Raises:
        NotFound: there is no such version.
        VerificationError: the copy is not what was published, or an adapter version's base is not there or another;
            nothing is left in the cache.
        DiskFull: the cache has no space; nothing is left in it.
        LockTimeout: another process copied the same version for longer than `lock_timeout_s`.
        StorageError: the file system refused.
    """
    target = cache / ref.name / ref.version
    with store.opened(source, OWN_NAMES) as own:
        manifest = read_manifest(ref, own, manifest_sha256=manifest_sha256, trusted=trusted)
        with storage_errors(f"copying {ref} into the cache"):
            ensure_directory(target.parent, 0o700)
            with kept(ref, own), exclusive_lock(target.parent / f".{ref.version}.lock", lock_timeout_s):
                check = partial(
                    verify_directory, ref, manifest_sha256=manifest_sha256, trusted=trusted, progress=progress
                )
                if not _reusable(ref, target, check):
                    _copy_verified(_Origin(manifest, store, source, own), target, check, progress)
    return target


@dataclass(frozen=True, slots=True)
class _Origin:
    manifest: Manifest
    store: Store
    version: PurePath
    own: Path  # a directory with the registry's own files of the version


def _reusable(ref: ModelRef, target: Path, check: _Check) -> bool:
    try:
        check(target)
    except NotFound:
        return False
    except (VerificationError, StorageError) as error:
        _log.warning("the cached copy of %s is damaged (%s); copying it again", ref, error.message)
        remove_tree(target)
        return False
    return True


def _copy_verified(origin: _Origin, target: Path, check: _Check, progress: Progress) -> None:
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        remove_tree(leftover)  # its maker is dead: we hold the lock
    unchecked = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
    try:
        _copy(origin, unchecked, progress)
        check(unchecked)
        if not rename_directory(unchecked, target):
            raise Conflict(
                f"{target.name} appeared in the cache while it was locked; give each service its own cache folder"
            )
    finally:
        remove_tree(unchecked)


def _copy(origin: _Origin, into: Path, progress: Progress) -> None:
    manifest, store = origin.manifest, origin.store
    if manifest.adapter is None:
        store.check_listing(manifest, origin.version)
    require_space(into.parent, manifest.size)
    make_directory(into, 0o700)
    if manifest.adapter is None:
        names = [entry.path for entry in manifest.files]
        store.fetch(origin.version, names, into, counter(progress, "copying", manifest.size))
    else:
        with store.gathered(origin.version, into.with_name(f"{into.name}-origin"), progress) as source:
            copy_merged(manifest, source, into, counter(progress, "merging", manifest.size))
    for name in sorted(OWN_NAMES):
        if name != SIGNATURE_NAME or (origin.own / name).exists():
            copy_file(origin.own / name, into / name, 0o600, _uncounted)
    sync_directory(into)


def _uncounted(chunk_bytes: int) -> None:
    """Manifest and signature are not part of the size that is shown."""
