"""Answers that may be given again, in Redis: each at `acemath:answer:<digest>`, listed by time in `acemath:answers`.

All together never take more than so many bytes: Redis also holds what must not be lost, and must not be filled by what
may be. `acemath:answers:sizes` has the size of each that is listed, and their sum under the empty name; nothing but the
script writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from acemath_core.errors import Unavailable
from acemath_gateway.adapters.redis_link import RedisLink, StoreAway
from acemath_gateway.ports import MAX_CACHE_SECONDS, KeptAnswer

_log = logging.getLogger(__name__)
_LIST, _SIZES = "acemath:answers", "acemath:answers:sizes"
_MAX_BYTES = 64 * 1024  # an answer of eight full candidates has about 20 KB
_EXTRA_BYTES = 512  # of one answer's keys and places in the lists, about

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# KEYS: answer.  → {} | {body, release, age in ms}
_GET = (
    _NOW
    + """
local kept = redis.call('HMGET', KEYS[1], 'body', 'release', 'at')
if not kept[1] then return {} end
return {kept[1], kept[2], math.max(0, now - tonumber(kept[3]))}
"""
)

# KEYS: answer, list, sizes.  ARGV: body, release, lifetime ms, size, bytes for all, longest lifetime of any in ms.
_PUT = (
    _NOW
    + """
local function forget(name)
  local size = redis.call('HGET', KEYS[3], name)
  if size then redis.call('HINCRBY', KEYS[3], '', '-' .. size) end
  redis.call('HDEL', KEYS[3], name)
  redis.call('ZREM', KEYS[2], name)
  redis.call('DEL', name)
end
forget(KEYS[1])
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3], 'LIMIT', 0, 100)
for _, name in ipairs(over) do forget(name) end
while tonumber(redis.call('HGET', KEYS[3], '') or 0) + ARGV[4] > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)
  if not oldest[1] then
    redis.call('DEL', KEYS[3])
    break
  end
  forget(oldest[1])
end
redis.call('HSET', KEYS[1], 'body', ARGV[1], 'release', ARGV[2], 'at', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now, KEYS[1])
redis.call('HSET', KEYS[3], KEYS[1], ARGV[4])
redis.call('HINCRBY', KEYS[3], '', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 1
"""
)


class RedisAnswerStore:
    """Answers of all gateways, for a while.

    Args:
        link: the connection.
        ttl_seconds: how long one is kept.
        total_bytes: what all of them may take; the oldest go first.
    """

    def __init__(self, link: RedisLink, *, ttl_seconds: int, total_bytes: int) -> None:
        self._link, self._ttl_seconds, self._total_bytes = link, ttl_seconds, total_bytes

    async def get(self, key: str) -> KeptAnswer | None:
        """See `AnswerStore.get`."""
        try:
            found = cast("Sequence[bytes]", await self._link.run(_GET, [_place(key)], []))
        except StoreAway as error:
            raise Unavailable("the shared store is away") from error
        age = int(found[2]) / 1000 if found else 0.0  # another gateway may keep them longer
        return KeptAnswer(found[0], found[1].decode(), age) if found and age < self._ttl_seconds else None

    async def put(self, key: str, body: bytes, release: str) -> None:
        """See `AnswerStore.put`."""
        if len(body) > _MAX_BYTES:
            return
        size = len(body) + _EXTRA_BYTES
        try:
            await self._link.run(
                _PUT,
                [_place(key), _LIST, _SIZES],
                [body, release, 1000 * self._ttl_seconds, size, self._total_bytes, 1000 * MAX_CACHE_SECONDS],
            )
        except StoreAway:
            _log.warning("redis is away: could not keep an answer to be given again")


def _place(key: str) -> str:
    return f"acemath:answer:{key}"
