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
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{field}: {first['msg']}; give it as an option or in --metadata", param=field) from error


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
