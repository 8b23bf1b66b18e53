"""Where API keys are kept, in the memory of one process; `tests/contract` holds it to what Redis does."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from acemath_core.admin import KeyChange
from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_gateway.keys.records import KeyRecord, changed
from acemath_gateway.keys.store import MAX_KEYS


@dataclass
class MemoryKeys:
    """`KeyStore` of one process.

    Attributes:
        away: behaves as if the store could not be reached.
        reads: how often a record was asked for.
    """

    away: bool = False
    reads: int = 0
    records: dict[str, KeyRecord] = field(default_factory=dict)

    async def read(self, key_id: str) -> KeyRecord | None:
        self._check()
        self.reads += 1
        record = self.records.get(key_id)
        return None if record is None or record.revoked_at else record

    async def create(self, record: KeyRecord) -> None:
        self._check()
        if record.id in self.records:
            raise Conflict("there is one")
        if len(self.records) >= MAX_KEYS:
            raise Conflict("too many")
        self.records[record.id] = record

    async def every(self) -> list[KeyRecord]:
        self._check()
        return list(self.records.values())

    async def change(self, key_id: str, change: KeyChange) -> KeyRecord | None:
        record = await self.read(key_id)
        if record is not None:
            self.records[key_id] = changed(record, change)
        return record and self.records[key_id]

    async def revoke(self, key_id: str) -> KeyRecord | None:
        self._check()
        record = self.records.get(key_id)
        if record is not None and record.revoked_at is None:
            self.records[key_id] = record.model_copy(update={"revoked_at": datetime.now(UTC).replace(microsecond=0)})
        return self.records.get(key_id)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the store is away", code=ErrorCode.KEYS_UNAVAILABLE, retry_after=2.0)
