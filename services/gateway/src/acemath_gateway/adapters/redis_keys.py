"""Records of API keys, for all gateways. They must last: they are in the append-only file, and nothing expires.

| key                    | type | holds                                                        |
|------------------------|------|--------------------------------------------------------------|
| `acemath:keys`         | hash | id → record (JSON), of the valid keys                        |
| `acemath:keys:revoked` | hash | id → when (Unix ms, Redis' own clock), a space, the record   |

A key is revoked by moving its record: where the second hash is lost, the key is still not valid.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from pydantic import ValidationError

from acemath_core.admin import KeyChange
from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_gateway.adapters.redis_link import Argument, RedisLink, StoreAway
from acemath_gateway.keys.records import KeyRecord, changed
from acemath_gateway.keys.store import MAX_KEYS, REVOKED_KEPT_DAYS

_log = logging.getLogger(__name__)
_KEYS = ["acemath:keys", "acemath:keys:revoked"]
_DAY_MS = 86_400_000
_TRIES = 5

# ARGV: id.  → the record, or nothing.
_READ = "return redis.call('HGET', KEYS[1], ARGV[1])"

# → {valid records…}, {revoked entries…}
_EVERY = "return {redis.call('HVALS', KEYS[1]), redis.call('HVALS', KEYS[2])}"

# ARGV: id, record, most keys, how long revoked ones are kept (ms).  → 1 kept, 0 the id is taken, -1 full.
_CREATE = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then return known == ARGV[2] and 1 or 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
local t = redis.call('TIME')
local old = t[1] * 1000 - ARGV[4]
local revoked = redis.call('HGETALL', KEYS[2])
for i = 1, #revoked, 2 do
  if tonumber(string.match(revoked[i + 1], '^%d+')) < old then redis.call('HDEL', KEYS[2], revoked[i]) end
end
if redis.call('HLEN', KEYS[1]) + redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

# ARGV: id, the record as it was read, the new one.  → 1 when it was still the same.
_REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

# ARGV: id.  → the revoked entry, or nothing.
_REVOKE = """
local revoked = redis.call('HGET', KEYS[2], ARGV[1])
if revoked then return revoked end
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return false end
local t = redis.call('TIME')
local entry = string.format('%.0f ', t[1] * 1000) .. record
redis.call('HSET', KEYS[2], ARGV[1], entry)
redis.call('HDEL', KEYS[1], ARGV[1])
return entry
"""


class RedisKeyStore:
    """`KeyStore` on Redis.

    Args:
        link: the connection.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def read(self, key_id: str) -> KeyRecord | None:
        """See `KeyStore.read`; a record that cannot be understood is nobody's."""
        raw = cast("bytes | None", await self._run(_READ, key_id))
        return None if raw is None else _record(raw)

    async def create(self, record: KeyRecord) -> None:
        """See `KeyStore.create`."""
        kept = await self._run(_CREATE, record.id, record.model_dump_json(), MAX_KEYS, REVOKED_KEPT_DAYS * _DAY_MS)
        if kept == -1:
            raise Conflict(f"there are {MAX_KEYS} keys already; revoke those that nobody uses", should_retry=False)
        if kept == 0:
            raise Conflict(f"there is a key {record.id} already; ask again for another one")

    async def every(self) -> list[KeyRecord]:
        """See `KeyStore.every`."""
        valid, revoked = cast("tuple[Sequence[bytes], Sequence[bytes]]", await self._run(_EVERY))
        found = [*(_record(raw) for raw in valid), *(_revoked(entry) for entry in revoked)]
        return [record for record in found if record is not None]

    async def change(self, key_id: str, change: KeyChange) -> KeyRecord | None:
        """See `KeyStore.change`; a newer gateway's fields stay as they are."""
        for _ in range(_TRIES):
            raw = cast("bytes | None", await self._run(_READ, key_id))
            record = None if raw is None else _record(raw)
            if raw is None or record is None:
                return None
            after = changed(record, change)
            new = json.loads(raw) | after.model_dump(mode="json", include={"name", "quotas"})
            if await self._run(_REPLACE, key_id, raw, json.dumps(new)):
                return after
        raise Conflict(f"{key_id} is being changed by others; look at it and try again")

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """See `KeyStore.revoke`."""
        entry = cast("bytes | None", await self._run(_REVOKE, key_id))
        return None if entry is None else _revoked(entry)

    async def _run(self, script: str, *args: Argument) -> object:
        try:
            return await self._link.run(script, _KEYS, args)
        except StoreAway as error:
            raise Unavailable(
                "API keys cannot be looked up or changed while the shared store is away; try again later",
                code=ErrorCode.KEYS_UNAVAILABLE,
                retry_after=2.0,
            ) from error


def _record(raw: bytes) -> KeyRecord | None:
    try:
        return KeyRecord.model_validate_json(raw)
    except ValidationError as error:
        _log.error(
            "a key's record in redis cannot be read; the key is refused", extra={"problems": error.error_count()}
        )
        return None


def _revoked(entry: bytes) -> KeyRecord | None:
    at, _, raw = entry.partition(b" ")
    record = _record(raw)
    when = datetime.fromtimestamp(int(at) / 1000, UTC)
    return None if record is None else record.model_copy(update={"revoked_at": when})
