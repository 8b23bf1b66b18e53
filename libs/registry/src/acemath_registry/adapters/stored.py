"""A version as it lies in the registry: whole, or thin (small files and an adapter) beside the base that it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from acemath_registry.adapters.config import read_lora
from acemath_registry.adapters.fitting import fit
from acemath_registry.adapters.merging import Merge
from acemath_registry.durable import copy_file, write_pieces
from acemath_registry.errors import InvalidRequest, NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.facts import compute_facts
from acemath_registry.files import OWN_NAMES, list_files
from acemath_registry.manifest import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAMES,
    ADAPTER_WEIGHTS_NAME,
    WEIGHTS_SUFFIX,
    AdapterRecord,
    FileEntry,
    Manifest,
)
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.signing import TrustedKeys
from acemath_registry.tensors import read_header, read_tensors
from acemath_registry.verify import (
    check_bytes,
    check_digests,
    check_facts,
    check_listing,
    check_names,
    check_sizes,
    kept,
    read_manifest,
    verify_directory,
)

Advance = Callable[[int], None]


def verify_stored(
    ref: ModelRef,
    directory: Path,
    *,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """`verify.verify_directory` of a version in its place in the registry, which may be thin: then it is merged, the
    result compared with the manifest, and nothing written.

    Raises:
        VerificationError: also as `check_stored`, `opened_base` and `Merge.pieces` say.
        NotFound, StorageError: as `verify.verify_directory`.
    """
    manifest = read_manifest(ref, directory, manifest_sha256=manifest_sha256, trusted=trusted)
    if manifest.adapter is None:
        return verify_directory(ref, directory, manifest_sha256=manifest_sha256, trusted=trusted, progress=progress)
    check_stored(manifest, directory)
    with opened_base(manifest.adapter, directory) as (base, place):
        merge = prepared(directory, base, place)
        tensors = read_tensors(place, (entry.path for entry in base.files))
        check_facts(manifest, compute_facts(directory, small_names(manifest), tensors))
        found = merged_entries(merge, counter(progress, "merging", sum(entry.size for entry in merge.files)))
    check_names(manifest, weights_of(manifest), {entry.path: entry.size for entry in found})
    check_digests(weights_of(manifest), found)
    return manifest


def copy_merged(manifest: Manifest, source: Path, into: Path, advance: Advance) -> None:
    """Put the files of the merged model into `into`; whoever asked verifies them.

    Args:
        manifest: of an adapter version.
        source: its directory in the registry, beside whose models its base is looked for.
        into: a new directory.
        advance: hears of each piece that is written.

    Raises:
        OSError: a file can not be read or written.
        VerificationError, LockTimeout, StorageError: as `check_stored`, `opened_base` and `Merge.pieces`.
    """
    assert manifest.adapter is not None
    check_stored(manifest, source)
    with opened_base(manifest.adapter, source) as (base, place):
        merge = prepared(source, base, place)
        for entry in merge.files:
            write_pieces(into / entry.path, _counted(merge.pieces(entry), advance), 0o600)
    for name in sorted(small_names(manifest)):
        copy_file(source / name, into / name, 0o600, advance)


def check_stored(manifest: Manifest, directory: Path) -> None:
    """Check every byte of what lies there of an adapter version; what its base adds is not looked at.

    Raises:
        VerificationError: a file is missing, surplus, of another size or digest, or may not be there.
        StorageError: a file can not be read.
    """
    sizes = stored_sizes(directory)
    check_names(manifest, manifest.stored_files, sizes)
    check_bytes(directory, manifest.stored_files, sizes)


def stored_sizes(directory: Path) -> dict[str, int]:
    """Name → bytes of the files of a thin version, or of a folder from which one is published; sorted by name.

    Raises:
        VerificationError, StorageError: as `files.list_files`.
    """
    sizes = list_files(directory, ignore=OWN_NAMES | ADAPTER_NAMES)
    with storage_errors(f"listing {directory.name}"):
        adapter = {name: (directory / name).stat().st_size for name in ADAPTER_NAMES if (directory / name).exists()}
    return dict(sorted((sizes | adapter).items()))


@contextmanager
def opened_base(adapter: AdapterRecord, directory: Path) -> Iterator[tuple[Manifest, Path]]:
    """Manifest and directory of the base of an adapter version in `directory`; nobody removes it while the block runs.

    Raises:
        VerificationError: BASE_MISSING, or BASE_DIFFERS when what lies there is not what the adapter was made for.
        LockTimeout, StorageError: it can not be kept or read.
    """
    with ExitStack() as stack:
        try:
            ref = adapter.base_ref
            place = directory.parent.parent / ref.name / ref.version
            manifest = read_manifest(ref, place, manifest_sha256=adapter.base_manifest_sha256)
            stack.enter_context(kept(ref, place))
            check_sizes(manifest.files, check_listing(manifest, place))  # their bytes are hashed as they are merged
        except (NotFound, InvalidRequest) as error:
            said = f"{adapter.base} is not in the registry; publish the base again, as it was"
            raise VerificationError(RejectReason.BASE_MISSING, said) from error
        except VerificationError as error:
            said = f"{adapter.base} is not the base that the adapter was published for: {error.message}"
            raise VerificationError(RejectReason.BASE_DIFFERS, said) from error
        yield manifest, place


def prepared(directory: Path, base: Manifest, base_directory: Path) -> Merge:
    """The merge of the adapter in `directory` with its base.

    Raises:
        VerificationError: an adapter that is not merged exactly or does not fit, or headers that are not right.
        StorageError: a file can not be read.
    """
    weights = directory / ADAPTER_WEIGHTS_NAME
    tensors = read_tensors(base_directory, (entry.path for entry in base.files))
    lora = read_lora(directory / ADAPTER_CONFIG_NAME)
    changes = fit(lora, read_header(weights), tensors)
    return Merge(base_directory, weights_of(base), weights, changes, lora.scaling)


def merged_entries(merge: Merge, advance: Advance) -> list[FileEntry]:
    """The merged weight files with their digests, without writing them; `advance` hears of each piece.

    Raises:
        InvalidRequest, VerificationError, StorageError: as `Merge.pieces`.
    """
    return [_entry(entry, _counted(merge.pieces(entry), advance)) for entry in merge.files]


def weights_of(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The files of a version that hold its weights."""
    return tuple(entry for entry in manifest.files if entry.path.endswith(WEIGHTS_SUFFIX))


def small_names(manifest: Manifest) -> set[str]:
    """The names of its other files."""
    return {entry.path for entry in manifest.files} - {entry.path for entry in weights_of(manifest)}


def _entry(entry: FileEntry, pieces: Iterable[bytes]) -> FileEntry:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return FileEntry(path=entry.path, size=entry.size, sha256=digest.hexdigest())


def _counted(pieces: Iterable[bytes], advance: Advance) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))
