"""What the publisher says of a version, from options, a file, and for the rest the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from acemath_core.errors import InvalidRequest
from acemath_registry.documents import MAX_DOCUMENT_BYTES, decode
from acemath_registry.durable import read_file
from acemath_registry.errors import RejectReason
from acemath_registry.hub import HubCheckpoint
from acemath_registry.manifest import PublishMetadata


def metadata_of(path: Path | None, options: dict[str, Any]) -> PublishMetadata:
    """The metadata in a JSON file (None for none), options that are given in its place.

    Raises:
        InvalidRequest: the file can not be read, or a field is missing or wrong.
        VerificationError: it is no JSON object.
    """
    document = _json_file(path) if path else {}
    document.update({key: value for key, value in options.items() if value is not None})
    try:
        return PublishMetadata.model_validate(document)
    except ValidationError as error:
        _check_keys(document)
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{field}: {first['msg']}; give it as an option or in --metadata", param=field) from error


def _check_keys(document: dict[str, Any]) -> None:
    """Raises InvalidRequest, which names every key that is unknown, or else every one that is missing."""
    fields = PublishMetadata.model_fields
    unknown = [repr(key) for key in document if key not in fields]
    if unknown:
        said = f"metadata has no {' and no '.join(unknown)}; known are {', '.join(fields)}"
        raise InvalidRequest(said, param="metadata")
    missing = [name for name, field in fields.items() if field.is_required() and name not in document]
    if missing:
        options, (are, them) = [f"--{name}" for name in missing], ("is", "it") if len(missing) == 1 else ("are", "them")
        said = f"{' and '.join(missing)} {are} missing; give {' and '.join(options)}, or put {them} into the"
        raise InvalidRequest(f"{said} --metadata file", param=missing[0])


def described(path: Path | None, options: dict[str, Any], found: HubCheckpoint) -> PublishMetadata:
    """What the publisher gives, and for the rest what the hub says; raises as `metadata_of`."""
    said = {"step": 0, "licence": found.licence, "base_model": found.source, "training": {"hub": found.record()}}
    document = _json_file(path) if path else {}
    return metadata_of(None, said | document | {key: value for key, value in options.items() if value is not None})


def _json_file(path: Path) -> dict[str, Any]:
    try:
        data = read_file(path, MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}; give a readable JSON file", param="metadata") from error
    return decode(data, file=path.name, reason=RejectReason.MANIFEST_MALFORMED)
