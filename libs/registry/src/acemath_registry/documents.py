"""The one way JSON documents are written here, so that the same content has the same bytes and the same digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from acemath_registry.errors import RejectReason, VerificationError

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""No document of ours comes near it; a reader must not be filled by one that does."""


def encode(document: dict[str, Any]) -> bytes:
    """The canonical bytes: sorted keys, two spaces, UTF-8, a newline at the end; NaN and infinity are refused.

    Raises:
        ValueError: a number that JSON does not have.
    """
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def decode(data: bytes, *, file: str, reason: RejectReason) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        VerificationError: with `reason`: not UTF-8, not JSON, not an object, or a key twice.
    """
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise VerificationError(reason, f"is not a JSON document ({error}); write it anew", file=file) from error
    if not isinstance(document, dict):
        raise VerificationError(reason, "is not a JSON object; write it anew", file=file)
    return document


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice")
    return document


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
