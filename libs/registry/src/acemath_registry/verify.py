"""Is this directory the version that was published? Cheap checks first, each difference with its own reason."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_registry.documents import MAX_DOCUMENT_BYTES, sha256_hex
from acemath_registry.durable import read_file, reading
from acemath_registry.errors import NotFound, RejectReason, VerificationError, storage_errors
from acemath_registry.facts import compute_facts
from acemath_registry.files import OWN_NAMES, hash_files, list_files, reject_reason
from acemath_registry.manifest import (
    MANIFEST_NAME,
    ComputedFacts,
    FileEntry,
    Manifest,
    TensorDigests,
    decode_manifest,
    version_of,
)
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.signing import TrustedKeys
from acemath_registry.tensors import Tensor, digest_tensors, read_tensors


def read_manifest(
    ref: ModelRef, directory: Path, *, manifest_sha256: str | None = None, trusted: TrustedKeys | None = None
) -> Manifest:
    """The manifest of `ref` in `directory`, checked against the version's name and, if given, a release's digest.

    Where there are `trusted` keys, one of them must have signed it.

    Raises:
        NotFound: there is no such directory.
        VerificationError: the manifest is missing, malformed, edited, of another version, not the released one, or not
            signed by a trusted key.
        StorageError: it can not be read.
    """
    data = manifest_bytes(ref, directory)
    if trusted is not None:
        trusted.check(ref, directory, data)
    if manifest_sha256 is not None and sha256_hex(data) != manifest_sha256:
        raise _reject(
            RejectReason.MANIFEST_EDITED,
            "is not the manifest that the release names; publish again and make a new release",
        )
    manifest = decode_manifest(data)
    if (manifest.name, manifest.version, manifest.step) != (ref.name, ref.version, ref.step):
        raise _reject(
            RejectReason.MISPLACED,
            f"describes {manifest.name}@{manifest.version}, not {ref}; put it back where it belongs",
        )
    if version_of(ref.step, manifest.files) != ref.version:
        raise _reject(
            RejectReason.VERSION_MISMATCH, f"lists files whose digest is not that of {ref}; publish again, never edit"
        )
    return manifest


@contextmanager
def kept(ref: ModelRef, directory: Path) -> Iterator[None]:
    """Keep a version that was found in the registry from being removed while the block runs.

    Raises:
        NotFound: it was removed meanwhile.
        LockTimeout, StorageError: it can not be kept.
    """
    with ExitStack() as stack:
        with storage_errors(f"keeping {ref}"):
            try:
                stack.enter_context(reading(directory / MANIFEST_NAME))
            except FileNotFoundError as error:
                raise _missing(ref, directory) from error
        yield


def verify_directory(
    ref: ModelRef,
    directory: Path,
    *,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """The manifest of `ref`, after every byte in `directory` was checked against it; arguments as `read_manifest`.

    Raises:
        NotFound: there is no such directory.
        VerificationError: anything differs; `.reason` says what.
        StorageError: a file can not be read.
    """
    manifest = read_manifest(ref, directory, manifest_sha256=manifest_sha256, trusted=trusted)
    sizes = check_listing(manifest, directory)
    tensors = read_tensors(directory, sizes)
    _check_tensors(manifest.tensors, tensors)
    check_bytes(directory, manifest.files, sizes, progress)
    check_facts(manifest, compute_facts(directory, set(sizes), tensors))
    return manifest


def check_listing(manifest: Manifest, directory: Path) -> dict[str, int]:
    """Name → size in bytes of the files in `directory`, after their names were checked against the manifest.

    Raises:
        VerificationError: a file is missing, surplus, a link, or may not be in a version.
        StorageError: the directory can not be read.
    """
    sizes = list_files(directory, ignore=OWN_NAMES)
    check_names(manifest, manifest.files, sizes)
    return sizes


def manifest_bytes(ref: ModelRef, directory: Path) -> bytes:
    """The bytes of `manifest.json`, unchecked; raises as `read_manifest`."""
    path = directory / MANIFEST_NAME
    with storage_errors(f"reading the manifest of {ref}"):  # a mount that is away fails at any look at it
        try:
            linked = any(stat.S_ISLNK(place.lstat().st_mode) for place in (directory, path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(ref, directory) from error
        if linked:
            raise _reject(RejectReason.SYMLINK, "or its directory is a symlink; put the file itself there")
        return read_file(path, MAX_DOCUMENT_BYTES)


def _missing(ref: ModelRef, directory: Path) -> ServiceError:
    if directory.is_dir():
        return _reject(
            RejectReason.MANIFEST_MISSING, "is not there, so the version was never published whole; publish it again"
        )
    return NotFound(f"{ref} is not in the registry; publish it, or correct the name", param="model")


def check_names(manifest: Manifest, wanted: Collection[FileEntry], sizes: Mapping[str, int]) -> None:
    """Refuse a manifest that lists what may not be in a version, and files that are not exactly the `wanted` ones.

    Raises:
        VerificationError: a name that may not be, a file twice, missing or surplus.
    """
    for entry in manifest.files:
        reason = reject_reason(entry.path)
        if reason is not None:
            raise _reject(reason, f"lists {entry.path!r}, which may not be in a version; do not use it")
    if len({entry.path for entry in manifest.files}) != len(manifest.files):
        raise _reject(RejectReason.MANIFEST_MALFORMED, "lists a file twice; publish again")
    listed = {entry.path for entry in wanted}
    for name in sorted(listed - sizes.keys()):
        raise VerificationError(
            RejectReason.FILE_MISSING, "is in the manifest but not on disk; copy it again", file=name
        )
    for name in sorted(sizes.keys() - listed):
        raise VerificationError(RejectReason.FILE_EXTRA, "is on disk but not in the manifest; remove it", file=name)


def _check_tensors(expected: TensorDigests, tensors: list[Tensor]) -> None:
    found = digest_tensors(tensors)
    for field, reason, what in (
        ("names_sha256", RejectReason.TENSOR_NAMES, "names"),
        ("shapes_sha256", RejectReason.TENSOR_SHAPES, "shapes"),
        ("dtypes_sha256", RejectReason.TENSOR_DTYPES, "dtypes"),
    ):
        if getattr(found, field) != getattr(expected, field):
            raise VerificationError(
                reason,
                f"the {what} of the {found.count} tensors differ from those of the {expected.count} published; "
                "copy the weights again",
            )


def check_bytes(
    directory: Path, wanted: Collection[FileEntry], sizes: Mapping[str, int], progress: Progress = no_progress
) -> None:
    """Compare size and sha256 of every file; `sizes` are those that lie there, the same names as `wanted`.

    Raises:
        VerificationError: SIZE_MISMATCH or CHECKSUM_MISMATCH, naming the file.
        StorageError: a file can not be read.
    """
    check_sizes(wanted, sizes)
    advance = counter(progress, "hashing", sum(sizes.values()))
    check_digests(wanted, hash_files(directory, sizes, advance))


def check_sizes(wanted: Collection[FileEntry], sizes: Mapping[str, int]) -> None:
    """Compare sizes of the same files.

    Raises:
        VerificationError: SIZE_MISMATCH, naming the file.
    """
    for entry in wanted:
        if sizes[entry.path] != entry.size:
            raise VerificationError(
                RejectReason.SIZE_MISMATCH,
                f"has {sizes[entry.path]} bytes, the manifest says {entry.size}; copy it again",
                file=entry.path,
            )


def check_digests(wanted: Collection[FileEntry], found: Collection[FileEntry]) -> None:
    """Compare digests of the same files.

    Raises:
        VerificationError: CHECKSUM_MISMATCH, naming the file.
    """
    digests = {entry.path: entry.sha256 for entry in found}
    for entry in wanted:
        if digests[entry.path] != entry.sha256:
            raise VerificationError(
                RejectReason.CHECKSUM_MISMATCH,
                f"has sha256 {digests[entry.path][:12]}…, the manifest says {entry.sha256[:12]}…; copy it again",
                file=entry.path,
            )


def check_facts(manifest: Manifest, found: ComputedFacts) -> None:
    """Compare what the manifest says with what follows from the files.

    Raises:
        VerificationError: METADATA_MISMATCH.
    """
    for field in ComputedFacts.model_fields:
        said, is_ = getattr(manifest, field), getattr(found, field)
        if said != is_:
            raise _reject(RejectReason.METADATA_MISMATCH, f"says {field}={said}, the files say {is_}; publish again")


def _reject(reason: RejectReason, detail: str) -> VerificationError:
    return VerificationError(reason, detail, file=MANIFEST_NAME)
