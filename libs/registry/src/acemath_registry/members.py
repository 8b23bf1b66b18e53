"""A release's two versions as the registry has them: of their kind, and kept while a channel is pointed at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from acemath_registry.announcing import announced
from acemath_registry.documents import MAX_DOCUMENT_BYTES, sha256_hex
from acemath_registry.durable import read_file
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.layout import Layout
from acemath_registry.manifest import MANIFEST_NAME, ModelKind
from acemath_registry.refs import ModelRef
from acemath_registry.verify import kept, read_manifest


def manifest_digest(layout: Layout, ref: ModelRef, kind: ModelKind) -> str:
    """The sha256 of the manifest of a version that is of this kind.

    Raises:
        NotFound: the version is not in the registry.
        VerificationError: its manifest is damaged, or it is of another kind.
        StorageError: it can not be read.
    """
    with layout.store.opened(layout.version(ref), OWN_NAMES) as directory:
        manifest = read_manifest(ref, directory)
        with storage_errors(f"reading the manifest of {ref}"):
            digest = sha256_hex(read_file(directory / MANIFEST_NAME, MAX_DOCUMENT_BYTES))
    if manifest.kind is not kind:
        raise VerificationError(
            RejectReason.WRONG_KIND, f"{ref} is a {manifest.kind} model and can not be a release's {kind}"
        )
    return digest


@contextmanager
def members_kept(layout: Layout, release_id: str, digests: Mapping[ModelRef, str]) -> Iterator[None]:
    """All of a release's versions are there with these manifests, and are not removed while the block runs.

    Raises:
        NotFound, VerificationError: one is not there, or has another manifest.
        Conflict: one is being removed.
        LockTimeout, StorageError: it can not be kept or read.
    """
    with ExitStack() as stack:
        stack.enter_context(announced(layout, [release_id], list(digests)))
        for ref, digest in digests.items():
            directory = stack.enter_context(layout.store.opened(layout.version(ref), OWN_NAMES))
            read_manifest(ref, directory, manifest_sha256=digest)
            stack.enter_context(kept(ref, directory))
        yield
