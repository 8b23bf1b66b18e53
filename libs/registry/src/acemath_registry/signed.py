"""Putting a signature beside a version that is in the registry already."""

from __future__ import annotations

from pathlib import Path

from acemath_registry.adapters.stored import verify_stored
from acemath_registry.audit import AuditEvent, record
from acemath_registry.documents import sha256_hex
from acemath_registry.errors import Conflict, RejectReason, VerificationError, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.layout import Layout
from acemath_registry.manifest import SIGNATURE_NAME, PublishMetadata
from acemath_registry.progress import Progress, no_progress
from acemath_registry.publish import differences
from acemath_registry.refs import ModelRef, check_by
from acemath_registry.signing import SigningKey, read_signature
from acemath_registry.verify import kept, manifest_bytes, read_manifest


def sign_version(
    layout: Layout, ref: ModelRef, key: SigningKey, *, by: str, progress: Progress = no_progress
) -> str | None:
    """Sign a version, in place of another signature, after every byte of it was checked.

    What is signed is what lies there: look at its manifest first when somebody else published it.

    Returns:
        The id of the other key whose signature was replaced; None where there was none.

    Raises:
        InvalidRequest: `by` can not be one.
        NotFound: there is no such version.
        VerificationError: it is not what was published.
        StorageError: the signature can not be written; an earlier one stays.
    """
    check_by(by)
    version = layout.version(ref)
    with layout.store.gathered(version, progress=progress) as directory:
        data, replaced = manifest_bytes(ref, directory), _other_key(ref, directory, key)
        with kept(ref, directory), storage_errors(f"signing {ref}"):
            verify_stored(ref, directory, manifest_sha256=sha256_hex(data), progress=progress)
            layout.store.attach(version, SIGNATURE_NAME, key.sign(ref, data), layout.staging)
    why = f"key {key.id}" if replaced is None else f"key {key.id}; replaces the signature by key {replaced}"
    record(layout, AuditEvent.SIGN, by=by, what=str(ref), why=why)
    return replaced


def _other_key(ref: ModelRef, directory: Path, key: SigningKey) -> str | None:
    """The id of the other key that the version's signature names; None where no such signature can be read."""
    try:
        found, _ = read_signature(ref, directory)
    except VerificationError:
        return None
    return None if found == key.id else found


def ensure_signed(layout: Layout, ref: ModelRef, key: SigningKey, metadata: PublishMetadata, *, by: str) -> None:
    """Sign a version that was published with this metadata, unless it has this key's signature already.

    Raises:
        Conflict: the version was published before, with other metadata: that manifest stands, and is not signed unseen.
            Or it is signed by another key, which replicas that serve it may trust.
        NotFound, VerificationError, StorageError: as `sign_version`.
    """
    with layout.store.opened(layout.version(ref), OWN_NAMES) as directory:
        try:
            key.trusted().check(ref, directory, manifest_bytes(ref, directory))
        except VerificationError as error:  # not signed yet, or by another key
            if error.reason is RejectReason.SIGNATURE_UNTRUSTED:
                raise _signed_already(ref, _other_key(ref, directory, key)) from error
        else:
            return
        different = differences(read_manifest(ref, directory), metadata)
    if different:
        raise Conflict(
            f"{ref} is published already with another {', '.join(different)}; look at it: acemath registry show {ref}, "
            f"then sign it: acemath registry sign {ref} --sign-key FILE",
            should_retry=False,
        )
    sign_version(layout, ref, key, by=by)


def _signed_already(ref: ModelRef, key: str | None) -> Conflict:
    return Conflict(
        f"{ref} is published already and signed by key {key}, which stays; to replace that signature: "
        f"acemath registry sign {ref} --sign-key FILE",
        should_retry=False,
    )
