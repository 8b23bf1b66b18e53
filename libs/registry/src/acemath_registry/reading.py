"""Reading a version where it lies: a few of its files, or every byte."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from acemath_registry.adapters.stored import verify_stored
from acemath_registry.canary_cases import canary_fault
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.finite import require_finite
from acemath_registry.layout import Layout
from acemath_registry.loadable import require_loadable
from acemath_registry.manifest import MANIFEST_NAME, Manifest
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.signing import TrustedKeys
from acemath_registry.tensors import read_tensors
from acemath_registry.verify import verify_directory
from acemath_registry.vocabulary import require_ids


@contextmanager
def opened(layout: Layout, ref: ModelRef, names: Collection[str]) -> Iterator[Path]:
    """A directory with those of the small files `names` that a version has, for reading while the block runs.

    Nothing is verified; of a version that is not there the directory is not either.

    Raises:
        NotFound: there is no such bucket.
        StorageError: they can not be read.
    """
    with ExitStack() as stack:
        with storage_errors(f"reading {ref}"):
            directory = stack.enter_context(layout.store.opened(layout.version(ref), names))
        yield directory


def verify_version(
    layout: Layout,
    ref: ModelRef,
    copy: Path | None,
    *,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Check every byte of a version, in the registry or in a copy, that its parts fit, and that its weights are finite.

    Args:
        layout: of the registry.
        ref: the version.
        copy: where the copy is; None for the registry's own.
        manifest_sha256: what the release says of the manifest; without it an edit of both the manifest and its seal is
            not found.
        trusted: keys, one of which must have signed it.
        progress: hears how far it is.

    Raises:
        NotFound: there is no such directory.
        VerificationError: anything differs; `.reason` says what. An adapter version is merged for it.
        StorageError: a file can not be read.
    """
    check = verify_stored if copy is None else verify_directory
    with ExitStack() as stack:
        where = copy
        if where is None:
            with storage_errors(f"reading {ref}"):
                where = stack.enter_context(layout.store.gathered(layout.version(ref), progress=progress))
        manifest = check(ref, where, manifest_sha256=manifest_sha256, trusted=trusted, progress=progress)
        if manifest.adapter is None or copy is not None:
            names = [entry.path for entry in manifest.files]
            require_loadable(where, read_tensors(where, names))
            require_finite(where, names, progress)
        else:  # merging has looked at every tensor and every number; the tokenizer may be the adapter's own
            require_ids(where, manifest.compatibility.vocab_size)
    _require_comparable(manifest)
    return manifest


def _require_comparable(manifest: Manifest) -> None:
    """Raises VerificationError for a canary that every replica would refuse; older publishers let it pass."""
    vocab_size = manifest.compatibility.vocab_size
    fault = None if manifest.canary is None else canary_fault(manifest.kind, manifest.canary, vocab_size)
    if fault is not None:
        said = f"{fault}; no replica can compare with it: publish again with another step"
        raise VerificationError(RejectReason.MANIFEST_MALFORMED, said, file=MANIFEST_NAME)
