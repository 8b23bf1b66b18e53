"""What keys use, counted over all gateways. May be lost: a key then has a whole minute's worth again.

| key                           | type | holds                                                                       |
|-------------------------------|------|-----------------------------------------------------------------------------|
| `acemath:quota:{<id>}`        | hash | `r`, `t`: requests and tokens left at `r_at`, `t_at` (Unix ms, Redis' clock) |
| `acemath:quota:{<id>}:visits` | zset | `<visit>:<sequences>` by expiry                                             |

A visit lives a few seconds and is asserted again by its gateway, as the holds of `redis_limit` are. It pays when it is
taken out of the second key, so that it pays once however often that is asked for. A clock that goes back fills nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from acemath_core.errors import Unavailable
from acemath_gateway.adapters.redis_link import (
    ASSERT_SECONDS,
    LIFETIME_SECONDS,
    Argument,
    RedisLink,
    StoreAway,
    StoreBusy,
)
from acemath_gateway.keys.quotas import QuotaKind, Standing, Visit

_MAX_IN_ONE_CALL = 500

# ARGV[1], ARGV[2]: requests and tokens a minute, 0 for no such quota.
_BUCKETS = """
local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)
local most = {r = tonumber(ARGV[1]), t = tonumber(ARGV[2])}
local left = {}
for name, whole in pairs(most) do
  local kept = redis.call('HMGET', KEYS[1], name, name .. '_at')
  left[name] = whole
  if kept[1] then left[name] = math.min(whole, kept[1] + math.max(0, now - kept[2]) * whole / 60000) end
end
local function wait(name, wanted)
  if most[name] == 0 then return 0 end
  return math.ceil(math.max(0, wanted - left[name]) * 60000 / most[name])
end
local function keep(name)
  redis.call('HSET', KEYS[1], name, string.format('%.6f', left[name]), name .. '_at', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], 60000 + math.max(wait('r', most.r), wait('t', most.t)))
end
local function standing(refused, retry)
  return {refused, retry, math.floor(left.r), wait('r', most.r), math.floor(left.t), wait('t', most.t)}
end
"""

# ARGV: …, most sequences or 0, lifetime ms, visit, sequences.  → standing
_ENTER = (
    _BUCKETS
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZSCORE', KEYS[2], ARGV[5]) then return standing('', 0) end
local held = 0
for _, visit in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  held = held + tonumber(string.match(visit, '(%d+)$'))
end
if tonumber(ARGV[3]) > 0 and held + ARGV[6] > tonumber(ARGV[3]) then return standing('sequences', 1000) end
if most.t > 0 and left.t < 1 then return standing('tokens', wait('t', 1)) end
if most.r > 0 and left.r < 1 then return standing('requests', wait('r', 1)) end
if most.r > 0 then left.r = left.r - 1; keep('r') end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[5])
redis.call('PEXPIRE', KEYS[2], 60000)
return standing('', 0)
"""
)

# ARGV: …, how many leave, (visit, tokens, 1 to give the request back)…, (visit, lifetime ms) of those that stay…
_SETTLE = (
    _BUCKETS
    + """
local spent, back, from = 0, 0, 4 + 3 * ARGV[3]
for i = 4, from - 1, 3 do
  if redis.call('ZREM', KEYS[2], ARGV[i]) == 1 then spent = spent + ARGV[i + 1]; back = back + ARGV[i + 2] end
end
if most.t > 0 and spent > 0 then left.t = left.t - spent; keep('t') end
if most.r > 0 and back > 0 then left.r = math.min(most.r, left.r + back); keep('r') end
for i = from, #ARGV, 2 do
  redis.call('ZADD', KEYS[2], now + ARGV[i + 1], ARGV[i])
  redis.call('PEXPIRE', KEYS[2], 60000)
end
return 1
"""
)


@dataclass(frozen=True, slots=True)
class _Left:
    """A visit that is over and has not been settled."""

    visit: Visit
    tokens: int
    started: bool
    at: float


class RedisQuotaStore:
    """`QuotaStore` on Redis; while it is away everybody is let in and nothing is counted.

    Args:
        link: the connection.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._inside: dict[str, Visit] = {}
        self._left: dict[str, _Left] = {}
        self._wake = asyncio.Event()
        link.on_recovery(self._settle_again)

    async def enter(self, visit: Visit) -> Standing | None:
        """See `QuotaStore.enter`."""
        try:
            standing = await self._enter(visit)
        except asyncio.CancelledError:
            self.leave(visit, tokens=0, started=False)  # the script may have run although nobody waits for its answer
            raise
        except StoreBusy:
            raise Unavailable("too many requests came at once; try again shortly", retry_after=1.0) from None
        except StoreAway:
            standing = None
        if standing is None or standing.refused is None:
            self._inside[visit.id] = visit
        return standing

    def leave(self, visit: Visit, *, tokens: int, started: bool) -> None:
        """See `QuotaStore.leave`."""
        self._inside.pop(visit.id, None)
        self._left[visit.id] = _Left(visit, tokens, started, time.monotonic())
        if self._link.up:
            self._wake.set()

    async def keep(self) -> None:
        """Settle what is over at once, and now and then assert again what is not; runs until cancelled."""
        asserted = time.monotonic()
        while True:
            with suppress(TimeoutError):  # nobody left meanwhile: time to assert again
                async with asyncio.timeout(max(0.0, asserted + ASSERT_SECONDS - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            self._forget_expired()
            due = time.monotonic() - asserted >= ASSERT_SECONDS
            asserted = time.monotonic() if due else asserted
            if self._link.up:
                with suppress(StoreAway):  # what is owed is kept; the recovery hook pays it
                    await self._settle(self._inside.values() if due else (), recovering=False)

    async def _enter(self, visit: Visit) -> Standing:
        most = visit.quotas.sequences_in_flight or 0
        args: list[Argument] = [*_rates(visit), most, _lifetime_ms(visit), _member(visit), visit.sequences]
        raw = cast("Sequence[bytes | int]", await self._link.run(_ENTER, _keys(visit), args))
        refused, retry_ms, requests, requests_ms, tokens, tokens_ms = (
            one.decode() if isinstance(one, bytes) else one for one in raw
        )
        return Standing(
            requests=int(requests),
            requests_reset_seconds=int(requests_ms) / 1000,
            tokens=int(tokens),
            tokens_reset_seconds=int(tokens_ms) / 1000,
            refused=QuotaKind(str(refused)) if refused else None,
            retry_seconds=int(retry_ms) / 1000,
        )

    async def _settle_again(self) -> None:
        await self._settle(self._inside.values(), recovering=True)

    async def _settle(self, inside: Iterable[Visit], *, recovering: bool) -> None:
        """One call for each key that somebody left or one of these is inside of."""
        leaving, staying = defaultdict[str, list[_Left]](list), defaultdict[str, list[Visit]](list)
        for _, left in zip(range(_MAX_IN_ONE_CALL), list(self._left.values()), strict=False):
            leaving[left.visit.key_id].append(left)
        for visit in inside:
            staying[visit.key_id].append(visit)
        for key_id in leaving.keys() | staying.keys():
            await self._settle_key(leaving[key_id], staying[key_id], recovering=recovering)
        if self._left and leaving:
            self._wake.set()

    async def _settle_key(self, leaving: Sequence[_Left], staying: Sequence[Visit], *, recovering: bool) -> None:
        one = leaving[0].visit if leaving else staying[0]
        args: list[Argument] = [*_rates(one), len(leaving)]
        for left in leaving:
            args += [_member(left.visit), left.tokens, 0 if left.started else 1]
        for visit in staying:
            args += [_member(visit), _lifetime_ms(visit)]
        await self._link.run(_SETTLE, _keys(one), args, recovering=recovering)
        for left in leaving:
            self._left.pop(left.visit.id, None)

    def _forget_expired(self) -> None:
        """What left so long ago has run out in Redis by itself, and cannot pay any more."""
        expired = time.monotonic() - LIFETIME_SECONDS
        for visit_id in [visit_id for visit_id, left in self._left.items() if left.at < expired]:
            del self._left[visit_id]


def _keys(visit: Visit) -> list[str]:
    return [f"acemath:quota:{{{visit.key_id}}}", f"acemath:quota:{{{visit.key_id}}}:visits"]


def _rates(visit: Visit) -> list[int]:
    return [visit.quotas.requests_per_minute or 0, visit.quotas.tokens_per_minute or 0]


def _member(visit: Visit) -> str:
    return f"{visit.id}:{visit.sequences}"


def _lifetime_ms(visit: Visit) -> int:
    """Until some time after the request's deadline, and never longer than a gateway that died may block others."""
    return int(1000 * min(visit.deadline.remaining() + ASSERT_SECONDS + 1.0, LIFETIME_SECONDS))
