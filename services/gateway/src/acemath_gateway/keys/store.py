"""Where keys are kept: the port; `adapters/redis_keys.py` meets it, and in tests a double."""

from __future__ import annotations

from typing import Protocol

from acemath_core.admin import KeyChange
from acemath_gateway.keys.records import KeyRecord

MAX_KEYS = 10_000
"""Keys that are kept at once, the revoked ones of the last days included."""
REVOKED_KEPT_DAYS = 90
"""How long a revoked key is listed."""


class KeyStore(Protocol):
    """Keeps the records of keys for all gateways.

    Every method raises `Unavailable` (`keys_unavailable`) while the store is away.
    """

    async def read(self, key_id: str) -> KeyRecord | None:
        """The record of a valid key; None when there is none, or it was revoked."""
        ...

    async def create(self, record: KeyRecord) -> None:
        """Keep a record; once this returns it is on every gateway.

        Raises:
            Conflict: there are `MAX_KEYS` already, or one with this id.
        """
        ...

    async def every(self) -> list[KeyRecord]:
        """All records, the revoked ones of the last `REVOKED_KEPT_DAYS` too; in no order."""
        ...

    async def change(self, key_id: str, change: KeyChange) -> KeyRecord | None:
        """Change a valid key's name or quotas; None when there is no such key, or it was revoked.

        Raises:
            Conflict: others change it all the time.
        """
        ...

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """Make a key invalid for ever; the same when it is already. None when there is no such key."""
        ...
