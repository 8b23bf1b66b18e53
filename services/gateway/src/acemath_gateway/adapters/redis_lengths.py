"""How long candidates get at each gateway, in Redis, so that all go by one bound (`places`).

`acemath:limit:lengths` is a hash of instance → tokens, weight and time (Unix ms, Redis' own clock).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import cast

from acemath_gateway.adapters.redis_link import ASSERT_SECONDS, Argument, RedisLink, StoreAway
from acemath_gateway.places import Lengths, Places

_KEY = "acemath:limit:lengths"
_KEPT_SECONDS = 300  # of a gateway that has ended

# KEYS: lengths.  ARGV: instance, tokens, weight, lifetime ms.  → instance, tokens, weight of each, one after the other
_SHARE = """
local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local all, found = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local tokens, weight, at = string.match(all[i + 1], '^(%S+) (%S+) (%S+)$')
  if not at or not tonumber(at) or now - tonumber(at) > tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    found[#found + 1] = all[i]
    found[#found + 1] = tokens
    found[#found + 1] = weight
  end
end
return found
"""


async def share_lengths(link: RedisLink, instance: str, places: Places) -> None:
    """Tell the other gateways this one's lengths, and hear theirs, every few seconds until cancelled."""
    while True:
        with suppress(StoreAway):  # what was heard last still counts
            own = places.own()
            args: list[Argument] = [instance, repr(own.tokens), repr(own.weight), 1000 * _KEPT_SECONDS]
            found = cast("Sequence[bytes]", await link.run(_SHARE, [_KEY], args))
            places.elsewhere(_others(found, instance))
        await asyncio.sleep(ASSERT_SECONDS)


def _others(found: Sequence[bytes], instance: str) -> Iterator[Lengths]:
    for at in range(0, len(found), 3):
        name, tokens, weight = found[at : at + 3]
        with suppress(ValueError):  # of another version of the gateway
            read = Lengths(float(tokens), float(weight))
            if name.decode(errors="replace") != instance and read.sound():
                yield read
