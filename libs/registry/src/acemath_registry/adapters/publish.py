"""Publishing an adapter on a version that is in the registry: the result is the version of the merged model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from acemath_registry.adapters.stored import merged_entries, prepared, small_names, stored_sizes
from acemath_registry.adapters.task import check_task
from acemath_registry.announcing import announced
from acemath_registry.audit import AuditEvent, acting_user, record
from acemath_registry.canary_cases import require_canary
from acemath_registry.documents import sha256_hex
from acemath_registry.durable import copy_file, require_space
from acemath_registry.errors import Conflict, InvalidRequest, RejectReason, VerificationError, storage_errors
from acemath_registry.facts import compute_facts
from acemath_registry.files import TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, hash_files
from acemath_registry.finite import require_finite
from acemath_registry.layout import Layout
from acemath_registry.manifest import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAMES,
    ADAPTER_WEIGHTS_NAME,
    AdapterRecord,
    Manifest,
    ModelKind,
    PublishMetadata,
)
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.publish import check_kind, manifest_of, put, require_source, wanted_again, warn_about_difference
from acemath_registry.refs import ModelRef
from acemath_registry.signing import SigningKey
from acemath_registry.tensors import read_tensors
from acemath_registry.verify import check_digests, check_listing, check_sizes, kept, manifest_bytes, read_manifest
from acemath_registry.vocabulary import require_ids

_TOKENIZER_FILES: Final = frozenset(
    {
        TOKENIZER_NAME,
        TOKENIZER_CONFIG_NAME,
        TEMPLATE_NAME,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    }
)
"""Of one tokenizer: all of them are the adapter's, or all are the base's."""

_OWN_FILES: Final = _TOKENIZER_FILES | {"generation_config.json", "README.md", "LICENSE", "NOTICE"}
"""What an adapter may bring beside its two files; config and weights are the base's."""


@dataclass(frozen=True, slots=True)
class _Base:
    manifest: Manifest
    sha256: str
    directory: Path


def publish_adapter(
    layout: Layout,
    source: Path,
    *,
    base: ModelRef,
    name: str,
    kind: ModelKind,
    metadata: PublishMetadata,
    by: str | None = None,
    signer: SigningKey | None = None,
    progress: Progress = no_progress,
) -> ModelRef:
    """Publish what PEFT saved in `source` as a version: `base` with the adapter merged. Other arguments as `publish`.

    Files of `source` take the place of the base's (a tokenizer as a whole); the others are the base's. What the merge
    gives is hashed and not written. The same content again, also when it was published merged, changes nothing.

    Raises:
        InvalidRequest: `name` can not be a name, `base` is an adapter version itself, the canary is none of such a
            version, or numpy is missing.
        NotFound: `source` is not a directory, or there is no such base.
        VerificationError: an adapter that can not be merged exactly or does not fit, a file that may not be there, a
            tokenizer that is not whole or has tokens without a row in the base's embedding, a damaged base, or a model
            of another kind.
        Conflict: the version exists but is damaged, or was removed just now.
        StorageError: the file system refused (DiskFull: no space); nothing is left behind.
    """
    require_source(source, name, holds=ADAPTER_CONFIG_NAME)
    publisher = by or acting_user()
    with ExitStack() as stack:  # the base is kept until the version that needs it can be seen
        stack.enter_context(announced(layout, [str(base)], [base]))
        on = _read_base(base, stack.enter_context(layout.store.gathered(layout.version(base), progress=progress)))
        stack.enter_context(kept(base, on.directory))
        fill = partial(_fill, source=source, base=on, name=name, kind=kind, metadata=metadata, progress=progress)
        manifest, stored = put(layout, name, fill, signer, progress)
    if stored is None:
        record(layout, AuditEvent.PUBLISH, by=publisher, what=str(manifest.ref), why=f"adapter of {base}")
    elif wanted_again(layout, stored.ref, publisher):
        warn_about_difference(stored, metadata)
    else:
        raise Conflict(f"{stored.ref} was there and has just been removed; publish again")
    return manifest.ref


def _read_base(base: ModelRef, directory: Path) -> _Base:
    digest = sha256_hex(manifest_bytes(base, directory))
    manifest = read_manifest(base, directory, manifest_sha256=digest)
    if manifest.adapter is not None:
        said = f"{base} is an adapter version itself, on {manifest.adapter.base}; merge the two, or train on that"
        raise InvalidRequest(said, param="adapter_of")
    check_sizes(manifest.files, check_listing(manifest, directory))
    return _Base(manifest, digest, directory)


def _fill(
    staged: Path,
    *,
    source: Path,
    base: _Base,
    name: str,
    kind: ModelKind,
    metadata: PublishMetadata,
    progress: Progress,
) -> Manifest:
    """Put the small files and the adapter into `staged`; the manifest is of the merged model."""
    check_task(source / ADAPTER_CONFIG_NAME, kind, base.manifest.ref)
    inherited = _copy(source, base, staged, progress)
    sizes = stored_sizes(staged)
    hashed = hash_files(staged, sizes, counter(progress, "hashing", sum(sizes.values())))
    check_digests([entry for entry in base.manifest.files if entry.path in inherited], hashed)
    stored = {entry.path: entry for entry in hashed}
    require_finite(staged, [ADAPTER_WEIGHTS_NAME])
    tensors = read_tensors(base.directory, (entry.path for entry in base.manifest.files))
    facts = compute_facts(staged, stored.keys() - ADAPTER_NAMES, tensors)
    check_kind(facts.architecture, facts.kind, kind)
    require_ids(staged, facts.compatibility.vocab_size)
    require_canary(kind, metadata.canary, facts.compatibility.vocab_size)
    merge = prepared(staged, base.manifest, base.directory)
    merged = merged_entries(merge, counter(progress, "merging", sum(entry.size for entry in merge.files)))
    small = [entry for path, entry in stored.items() if path not in ADAPTER_NAMES]
    adapter = AdapterRecord(
        base=str(base.manifest.ref),
        base_manifest_sha256=base.sha256,
        files=tuple(stored[path] for path in sorted(ADAPTER_NAMES)),
    )
    files = tuple(sorted((*small, *merged), key=lambda entry: entry.path))
    return manifest_of(name, facts, metadata, files, adapter)


def _copy(source: Path, base: _Base, staged: Path, progress: Progress) -> frozenset[str]:
    """The names of the files that are the base's."""
    own = stored_sizes(source)
    for name in sorted(ADAPTER_NAMES - own.keys()):
        raise VerificationError(RejectReason.FILE_MISSING, "is not there; save the adapter with PEFT", file=name)
    for name in sorted(own.keys() - ADAPTER_NAMES - _OWN_FILES):
        said = "may not be beside an adapter: config and weights are those of its base; remove it"
        raise VerificationError(RejectReason.NAME_NOT_ALLOWED, said, file=name)
    replaced = own.keys() | (_TOKENIZER_FILES if own.keys() & _TOKENIZER_FILES else frozenset())
    inherited = frozenset(small_names(base.manifest) - replaced)
    total = sum(own.values()) + sum(entry.size for entry in base.manifest.files if entry.path in inherited)
    require_space(staged, total)
    advance = counter(progress, "copying", total)
    with storage_errors("copying the adapter", source):
        for name in sorted(own):
            copy_file(source / name, staged / name, 0o644, advance)
        for name in sorted(inherited):
            copy_file(base.directory / name, staged / name, 0o644, advance)
    return inherited
