"""What gateways share besides the limit: answers under idempotency keys, and leases on releases.

| key                                | type   | holds                                                | may be lost |
|------------------------------------|--------|------------------------------------------------------|-------------|
| `acemath:idempotency:<digest>`     | hash   | fingerprint, and owner or status and body            | no          |
| `acemath:leases:<instance>`        | hash   | generation, release, counts (JSON), at               | yes         |
| `acemath:gateways`                 | zset   | instance by the time of its last lease record        | yes         |

A claim and a lease record live a few seconds and are asserted again by their owner: a killed gateway's run out by
themselves, and a flushed Redis is filled again. Times are Redis' own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast
from weakref import WeakValueDictionary

from acemath_core.deadline import Deadline
from acemath_core.errors import Conflict, DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.adapters import redis_scripts as scripts
from acemath_gateway.adapters.redis_link import ASSERT_SECONDS, LIFETIME_SECONDS, Argument, RedisLink, StoreAway
from acemath_gateway.ports import Stored

_log = logging.getLogger(__name__)
_PENDING = b"pending"


@dataclass(slots=True)
class _Claim:
    owner: str
    fingerprint: str


class RedisIdempotencyStore:
    """One answer for one key over all gateways.

    A claim lives `LIFETIME_SECONDS` and is asserted again while its request works; when its gateway dies, the next
    request with the key takes it over.

    Args:
        link: the connection.
        ttl_seconds: how long a finished answer is kept.
    """

    def __init__(self, link: RedisLink, *, ttl_seconds: int) -> None:
        self._link, self._ttl_seconds = link, ttl_seconds
        self._claims: dict[str, _Claim] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        link.on_recovery(self._assert_again)

    async def begin(self, key: str, fingerprint: str, deadline: Deadline) -> Stored | None:
        """Claim the key, or give the answer that it already has; waits while another request works on it.

        Raises:
            Conflict: (`idempotency_conflict`) the key was used with another body.
            Unavailable: (`idempotency_unavailable`) Redis is away.
            DeadlineExceeded: the other request did not finish in time.
        """
        claim = _Claim(uuid.uuid4().hex, fingerprint)
        reply = await self._begin(key, claim)
        if reply[0] == _PENDING:
            reply = await self._wait_in_turn(key, claim, deadline)
        if reply[0] == b"done":
            return Stored(int(reply[1]), reply[2])
        if reply[0] == b"conflict":
            raise _conflict()
        self._claims[key] = claim
        return None

    async def finish(self, key: str, fingerprint: str, answer: Stored) -> None:
        """Keep the answer; when Redis was lost meanwhile the answer is still right, but a later request works again."""
        claim = self._claims.pop(key, None)
        if claim is None:
            return  # the claim was lost to another request, whose answer counts
        args: list[Argument] = [claim.owner, fingerprint, answer.status, answer.body, 1000 * self._ttl_seconds]
        await self._quietly("keep an answer", scripts.FINISH, key, args)

    async def abandon(self, key: str, fingerprint: str) -> None:
        """Free the key for a retry; when Redis is away the claim runs out by itself."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            await self._quietly("free a key", scripts.ABANDON, key, [claim.owner])

    async def keep(self) -> None:
        """Assert the claims again until cancelled."""
        while True:
            await asyncio.sleep(ASSERT_SECONDS)
            if self._link.up:
                with suppress(StoreAway):  # the recovery hook asserts them
                    await self._assert(recovering=False)

    async def _wait_in_turn(self, key: str, claim: _Claim, deadline: Deadline) -> Sequence[bytes]:
        """What became of a key that another request works on; of all that wait for it here, one asks at a time."""
        turn, pause = self._turns.setdefault(key, asyncio.Lock()), 0.02
        try:
            async with asyncio.timeout(deadline.remaining()):
                await turn.acquire()
        except TimeoutError:
            raise _still_worked_on() from None
        try:
            while (reply := await self._begin(key, claim))[0] == _PENDING:
                if deadline.remaining() <= pause:  # never in the middle of a call, which may claim the key
                    raise _still_worked_on()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 0.25)
            return reply
        finally:
            turn.release()

    async def _begin(self, key: str, claim: _Claim) -> Sequence[bytes]:
        args: list[Argument] = [claim.owner, claim.fingerprint, int(1000 * LIFETIME_SECONDS)]
        try:
            return cast("Sequence[bytes]", await self._link.run(scripts.BEGIN, [_idempotency_key(key)], args))
        except StoreAway as error:
            raise Unavailable(
                "Idempotency-Key cannot be honoured while the shared store is away; try again later or leave it out",
                code=ErrorCode.IDEMPOTENCY_UNAVAILABLE,
                retry_after=2.0,
            ) from error

    async def _quietly(self, what: str, script: str, key: str, args: Sequence[Argument]) -> None:
        try:
            await self._link.run(script, [_idempotency_key(key)], args)
        except StoreAway:
            _log.warning("redis is away: could not %s", what)

    async def _assert_again(self) -> None:
        await self._assert(recovering=True)

    async def _assert(self, *, recovering: bool) -> None:
        for key, claim in list(self._claims.items()):
            args: list[Argument] = [claim.owner, claim.fingerprint, int(1000 * LIFETIME_SECONDS)]
            kept = await self._link.run(scripts.RENEW, [_idempotency_key(key)], args, recovering=recovering)
            if not kept and self._claims.get(key) is claim:
                del self._claims[key]


class RedisLeaseStore:
    """Tells everybody which releases this gateway still works with; a missing record means unknown, never zero.

    Args:
        link: the connection.
        instance: this gateway's name; no two gateways share one.
    """

    def __init__(self, link: RedisLink, *, instance: str) -> None:
        self._link, self._instance = link, instance
        self._latest: tuple[int, str | None, dict[str, int]] | None = None
        link.on_recovery(self._assert_again)

    async def assert_leases(
        self, generation: int, release: str | None, counts: dict[str, int], viewed: float | None = None
    ) -> None:
        """See `LeaseStore.assert_leases`; `viewed` is left out."""
        self._latest = (generation, release, dict(counts))
        await self._assert_quietly()

    async def withdraw(self) -> None:
        """Take this gateway off the list: it was stopped in order and holds nothing any more."""
        self._latest = None
        try:
            await self._link.run(scripts.WITHDRAW, self._keys(), [self._instance])
        except StoreAway:
            _log.warning("redis is away: this gateway's lease record runs out by itself")

    async def _assert_quietly(self) -> None:
        with suppress(StoreAway):  # the recovery hook asserts it
            await self._assert(recovering=False)

    async def _assert_again(self) -> None:
        await self._assert(recovering=True)

    async def _assert(self, *, recovering: bool) -> None:
        if self._latest is None:
            return
        generation, release, counts = self._latest
        lifetime_ms = int(1000 * LIFETIME_SECONDS)
        args: list[Argument] = [self._instance, generation, json.dumps(counts), lifetime_ms, release or ""]
        await self._link.run(scripts.LEASE, self._keys(), args, recovering=recovering)

    def _keys(self) -> list[str]:
        return [f"acemath:leases:{self._instance}", "acemath:gateways"]


def _idempotency_key(key: str) -> str:
    return f"acemath:idempotency:{key}"


def _still_worked_on() -> DeadlineExceeded:
    return DeadlineExceeded(
        "another request with this Idempotency-Key was still being worked on at the deadline", should_retry=False
    )


def _conflict() -> Conflict:
    return Conflict(
        "this Idempotency-Key was used with another body; send the same body again, or another key",
        code=ErrorCode.IDEMPOTENCY_CONFLICT,
        should_retry=False,
    )
