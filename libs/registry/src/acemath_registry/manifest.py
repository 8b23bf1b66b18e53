"""What a published version says about itself: `manifest.json`, written last and never changed.

The version's name covers every file but this one; the manifest's own bytes are covered by `self_sha256` (against
accidents) and by the `manifest_sha256` of each release that names the version (against edits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from acemath_registry.documents import decode, encode, sha256_hex
from acemath_registry.errors import RejectReason, VerificationError
from acemath_registry.refs import NAME_PATTERN, VERSION_PATTERN, ModelRef

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "model.sig"
ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
ADAPTER_WEIGHTS_NAME: Final = "adapter_model.safetensors"
ADAPTER_NAMES: Final = frozenset({ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME})
"""As PEFT names them; a version that is stored as an adapter has both in the place of its weights."""

WEIGHTS_SUFFIX: Final = ".safetensors"
SCHEMA_VERSION: Final = 1
_SEAL: Final = "self_sha256"
_HEX64 = r"^[0-9a-f]{64}$"


class ModelKind(StrEnum):
    """What a version is for."""

    POLICY = "policy"
    REWARD = "reward"


class _Document(BaseModel):
    # A reader of today keeps what a writer of tomorrow adds.
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class FileEntry(_Document):
    """One file: its name in the version's directory, its size in bytes and its sha256."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=_HEX64)


class TensorDigests(_Document):
    """What the safetensors headers say, as digests over the sorted tensors, so that each difference has its own name.

    Attributes:
        count: tensors.
        parameters: elements over all tensors.
        names_sha256: over the names.
        shapes_sha256: over names and shapes.
        dtypes_sha256: over names and dtypes.
    """

    count: int = Field(ge=1)
    parameters: int = Field(ge=0)
    names_sha256: str = Field(pattern=_HEX64)
    shapes_sha256: str = Field(pattern=_HEX64)
    dtypes_sha256: str = Field(pattern=_HEX64)


class Compatibility(_Document):
    """What a server must agree with to load this version; computed from the files.

    Attributes:
        vocab_size: rows of the embedding, from config.json.
        max_length: tokens of prompt and completion together.
        tokenizer_sha256: of tokenizer.json.
        chat_template_sha256: of the chat template's UTF-8 text.
    """

    vocab_size: int = Field(ge=1)
    max_length: int = Field(ge=1)
    tokenizer_sha256: str = Field(pattern=_HEX64)
    chat_template_sha256: str = Field(pattern=_HEX64)


class AdapterRecord(_Document):
    """How a version is stored that is an adapter on another one.

    Attributes:
        base: `name@version` of the version whose weights it changes.
        base_manifest_sha256: of that version's manifest.
        files: the adapter's config and weights, sorted by path.
    """

    base: str = Field(pattern=f"^{NAME_PATTERN.pattern}@{VERSION_PATTERN.pattern}$")
    base_manifest_sha256: str = Field(pattern=_HEX64)
    files: tuple[FileEntry, ...]

    @field_validator("files")
    @classmethod
    def _both(cls, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        if [entry.path for entry in files] != sorted(ADAPTER_NAMES):
            raise ValueError(f"an adapter has the files {' and '.join(sorted(ADAPTER_NAMES))}")
        return files

    @property
    def base_ref(self) -> ModelRef:
        """The base; raises InvalidRequest for a name that is too long to be one."""
        return ModelRef.parse(self.base)


class ComputedFacts(_Document):
    """The part of a manifest that follows from the files; publish computes it and verify computes it again."""

    kind: ModelKind
    architecture: str
    dtype: str
    tensors: TensorDigests
    compatibility: Compatibility


class PublishMetadata(BaseModel):
    """The part of a manifest that only the publisher knows.

    Attributes:
        step: training step, or 0 for a base model; part of the version's name.
        licence: SPDX expression of the weights' licence.
        parent: `name@version` this was trained from, if it is in a registry.
        base_model: hub id and revision, or package and version, of the first ancestor.
        training: run: git commit, config digest, data fingerprint, seed, world size, …
        metrics: what was measured, and the gate's result.
        canary: token ids and the values the trainer computed for them; see `canary_cases`.
        tools: versions of the libraries that made the files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int = Field(ge=0, lt=10**15, strict=True)
    licence: str = Field(min_length=1)
    parent: str | None = None
    base_model: str | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    canary: dict[str, JsonValue] | None = None
    tools: dict[str, str] = Field(default_factory=dict)


class Manifest(ComputedFacts):
    """Everything known of one version. Unknown keys are kept.

    Attributes:
        files: every file of the version but the manifest and its signature, sorted by path.
        adapter: what is stored in the place of the weights, where the version is an adapter on another one; `files` are
            those of the merged model all the same.
        created_at: when it was published; outside the version's name, so that the same content has the same name.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    files: tuple[FileEntry, ...] = Field(min_length=1)
    step: int = Field(ge=0)
    licence: str
    parent: str | None = None
    base_model: str | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    canary: dict[str, JsonValue] | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    adapter: AdapterRecord | None = None
    created_at: AwareDatetime

    @property
    def ref(self) -> ModelRef:
        """The version this manifest describes."""
        return ModelRef(self.name, self.version)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def stored_files(self) -> tuple[FileEntry, ...]:
        """The files that lie in the registry: of an adapter version its small ones and the adapter."""
        if self.adapter is None:
            return self.files
        small = (entry for entry in self.files if not entry.path.endswith(WEIGHTS_SUFFIX))
        return tuple(sorted((*small, *self.adapter.files), key=lambda entry: entry.path))

    @property
    def stored_size(self) -> int:
        """Bytes of the files that lie in the registry."""
        return sum(entry.size for entry in self.stored_files)


def version_of(step: int, files: Iterable[FileEntry]) -> str:
    """The name of a version: `s<step>-<first 12 hex digits of the content's sha256>`.

    The content is the text that `sha256sum` prints for the files sorted by name, so a shell can check it:
    `ls | grep -vx -e manifest.json -e model.sig | LC_ALL=C sort | xargs sha256sum | sha256sum`.
    Times, modes and the order of `files` do not enter.
    """
    lines = "".join(f"{entry.sha256}  {entry.path}\n" for entry in sorted(files, key=lambda entry: entry.path))
    return f"s{step}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, sealed with `self_sha256`."""
    return _seal(manifest.model_dump(mode="json"))


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes.

    Raises:
        VerificationError: malformed, of an unknown schema, edited, or naming a file outside its directory.
    """
    document = decode(data, file=MANIFEST_NAME, reason=RejectReason.MANIFEST_MALFORMED)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise _reject(
            RejectReason.SCHEMA_UNSUPPORTED,
            f"schema_version is {document.get('schema_version')!r}, this reader knows {SCHEMA_VERSION}; upgrade it",
        )
    _check_paths(document)
    if _seal({key: value for key, value in document.items() if key != _SEAL}) != data:
        raise _reject(
            RejectReason.MANIFEST_EDITED, "does not have the bytes it was published with; publish again, never edit"
        )
    try:
        return Manifest.model_validate({key: value for key, value in document.items() if key != _SEAL})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _reject(RejectReason.MANIFEST_MALFORMED, f"{where}: {first['msg']}; publish again") from error


def _seal(document: dict[str, Any]) -> bytes:
    return encode({**document, _SEAL: sha256_hex(encode(document))})


def _check_paths(document: dict[str, Any]) -> None:
    files = document.get("files")
    for entry in files if isinstance(files, list) else []:
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str) or path in {"", ".", ".."} or "/" in path or "\\" in path or "\0" in path:
            raise _reject(
                RejectReason.PATH_TRAVERSAL,
                f"names the file {path!r}, which is not a plain name; do not use this version",
            )


def _reject(reason: RejectReason, detail: str) -> VerificationError:
    return VerificationError(reason, detail, file=MANIFEST_NAME)
