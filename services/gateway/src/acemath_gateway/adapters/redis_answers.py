"""Answers that may be given again, in Redis: each at `acemath:answer:<digest>`, listed by time in `acemath:answers`.

There are never more than so many: Redis also holds what must not be lost, and must not be filled by what may be.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from acemath_core.errors import Unavailable
from acemath_gateway.adapters.redis_link import RedisLink, StoreAway
from acemath_gateway.ports import KeptAnswer

_log = logging.getLogger(__name__)
_LIST = "acemath:answers"
_MAX_BYTES = 64 * 1024  # an answer of eight full candidates has about 20 KB

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

# KEYS: answer, list.  ARGV: body, release, lifetime ms, how many there may be.
_PUT = (
    _NOW
    + """
redis.call('HSET', KEYS[1], 'body', ARGV[1], 'release', ARGV[2], 'at', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now, KEYS[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
local extra = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if extra > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], extra)
  for i = 1, #oldest, 2 do redis.call('DEL', oldest[i]) end
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)


class RedisAnswerStore:
    """Answers of all gateways, for a while.

    Args:
        link: the connection.
        ttl_seconds: how long one is kept.
        entries: how many there may be; the oldest go first.
    """

    def __init__(self, link: RedisLink, *, ttl_seconds: int, entries: int) -> None:
        self._link, self._ttl_seconds, self._entries = link, ttl_seconds, entries

    async def get(self, key: str) -> KeptAnswer | None:
        """See `AnswerStore.get`."""
        try:
            found = cast("Sequence[bytes]", await self._link.run(_GET, [_place(key)], []))
        except StoreAway as error:
            raise Unavailable("the shared store is away") from error
        return KeptAnswer(found[0], found[1].decode(), int(found[2]) / 1000) if found else None

    async def put(self, key: str, body: bytes, release: str) -> None:
        """See `AnswerStore.put`."""
        if len(body) > _MAX_BYTES:
            return
        try:
            await self._link.run(_PUT, [_place(key), _LIST], [body, release, 1000 * self._ttl_seconds, self._entries])
        except StoreAway:
            _log.warning("redis is away: could not keep an answer to be given again")


def _place(key: str) -> str:
    return f"acemath:answer:{key}"
