"""A key, its record, and how the one is found by the other.

A key is `acemath_` and 43 characters that hold 256 random bits. What is kept of it is one SHA-256: nobody can try
2^256 keys, so that the slow, salted hashes that passwords need would only make every request slower. The id is the
hash's first 64 bits; who knows it is left with 192 to guess.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ConfigDict, Field

from acemath_core.admin import KeyChange, KeyInfo, KeyRequest, NewKey, Quotas
from acemath_web.auth import Caller, digest_of

_RANDOM_BYTES = 32
_KEY = re.compile(r"acemath_[A-Za-z0-9_-]{43}")
NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class KeyCaller(Caller):
    """A caller with quotas of its own."""

    quotas: Quotas = NO_QUOTAS


class KeyRecord(KeyInfo):
    """What is kept of a key; a newer gateway's fields are passed over.

    Attributes:
        digest: the key's SHA-256, 64 hex digits.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)

    def info(self) -> KeyInfo:
        """The record without the digest."""
        return KeyInfo(**{name: getattr(self, name) for name in KeyInfo.model_fields})

    def caller(self) -> KeyCaller:
        """Who shows the key."""
        return KeyCaller(self.id, frozenset(self.scopes), self.quotas)


def payer(caller: Caller) -> KeyCaller | None:
    """Whose quotas a caller's requests are charged to; None when it has none."""
    return caller if isinstance(caller, KeyCaller) and caller.quotas else None


def draw(request: KeyRequest, by: str) -> tuple[str, KeyRecord]:
    """A new key and its record.

    Args:
        request: what it is to be.
        by: id of the key that asks for it.
    """
    key = f"acemath_{secrets.token_urlsafe(_RANDOM_BYTES)}"
    digest = digest_of(key)
    record = KeyRecord(
        id=id_of(digest),
        name=request.name,
        scopes=request.scopes,
        quotas=request.quotas,
        last_four=key[-4:],
        created_at=datetime.now(UTC).replace(microsecond=0),
        created_by=by,
        digest=digest.hex(),
    )
    return key, record


def changed(record: KeyRecord, change: KeyChange) -> KeyRecord:
    """The record after a change."""
    return record.model_copy(update={"name": change.name or record.name, "quotas": change.of(record.quotas)})


def handed_out(key: str, record: KeyRecord) -> NewKey:
    """The one answer that holds the key."""
    return NewKey(**dict(record.info()), key=key)


def id_of(digest: bytes) -> str:
    """The id of the key with this SHA-256."""
    return f"key-{digest.hex()[:16]}"


def may_be_one(key: str) -> bool:
    """Whether a text has the form of a key that we made: any other needs no look-up."""
    return _KEY.fullmatch(key) is not None
