"""The bound on sequences in flight that all gateways share, and each one's own bound while Redis is away.

`acemath:limit:sequences` is a sorted set of `<request>:<hold>:<sequences>` by expiry (Unix ms, Redis' own clock). A
hold lives a few seconds and is asserted again by its gateway: a killed gateway's places come back by themselves, and a
flushed or restarted Redis counts right again after one round. `acemath:limit:wanted` is there for half a second after
somebody was refused: what asks for spare places only is granted none meanwhile, whichever gateway it asks.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_core.errors import Unavailable
from acemath_gateway.adapters import redis_scripts as scripts
from acemath_gateway.adapters.redis_link import (
    ASSERT_SECONDS,
    LIFETIME_SECONDS,
    Argument,
    RedisLink,
    StoreAway,
    StoreBusy,
)
from acemath_gateway.ports import LimitOutcome

_KEY, _WANTED_KEY = "acemath:limit:sequences", "acemath:limit:wanted"
_WANTED_MS = 500  # whoever is refused asks again several times in that
_MAX_RELEASED_IN_ONE_CALL = 1000
_RIDE_SECONDS = 0.02  # what is released goes with the next request's own call, where one comes so soon


@dataclass(frozen=True, slots=True)
class _Hold:
    sequences: int
    deadline: Deadline
    spare_only: bool

    def lifetime_ms(self) -> int:
        """Until the request's deadline, and never longer than a gateway that died may block others."""
        return int(1000 * min(self.deadline.remaining() + 1.0, LIFETIME_SECONDS))


class RedisSequenceLimit:
    """The bound on sequences in flight over all gateways; this gateway's own bound while Redis is away.

    Args:
        link: the connection.
        shared_max: gives the sequences over all gateways, now.
        local_max: gives the sequences of this gateway while Redis is away, now.
        spare_share: of either, what those may fill who ask for spare places only.

    A single request that is larger than any of these runs alone.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        shared_max: Callable[[], int],
        local_max: Callable[[], int],
        spare_share: float = 0.75,
    ) -> None:
        self._link, self._shared_max, self._local_max = link, shared_max, local_max
        self._spare_share = spare_share
        self._holds: dict[str, _Hold] = {}
        self._released: dict[str, float] = {}  # by monotonic time: what is older has run out in Redis by itself
        self._wake = asyncio.Event()
        link.on_recovery(self._assert_again)

    @asynccontextmanager
    async def hold(
        self, request_id: str, sequences: int, deadline: Deadline, *, spare_only: bool = False
    ) -> AsyncIterator[LimitOutcome]:
        """Hold `sequences` places for the length of the block; see `SequenceLimit.hold`.

        Raises:
            Unavailable: (`overloaded`) the places are taken.
        """
        member = f"{request_id[:64]}:{uuid.uuid4().hex}:{sequences}"
        outcome = await self._take(member, _Hold(sequences, deadline, spare_only))
        try:
            yield outcome
        finally:
            # Not awaited: a cancelled request may not be able to await, and its places must come back all the same.
            del self._holds[member]
            self._give_back(member)

    async def keep(self) -> None:
        """Give back what was released and assert again what is held; runs until cancelled."""
        asserted = time.monotonic()
        while True:
            with suppress(TimeoutError):  # nothing was released meanwhile: time to assert again
                async with asyncio.timeout(max(0.0, asserted + ASSERT_SECONDS - time.monotonic())):
                    await self._wake.wait()
                    await asyncio.sleep(_RIDE_SECONDS)
            self._wake.clear()
            due = time.monotonic() - asserted >= ASSERT_SECONDS
            if due:
                asserted = time.monotonic()
            if self._link.up:
                await self._quietly(self._holds if due else {})
            else:
                expired = time.monotonic() - LIFETIME_SECONDS
                self._forget([member for member, at in self._released.items() if at < expired])

    async def _take(self, member: str, hold: _Hold) -> LimitOutcome:
        try:
            granted = await self._take_shared(member, hold)
            outcome, limit = LimitOutcome.SHARED, self._shared_max()
        except asyncio.CancelledError:
            self._give_back(member)  # the script may have run although nobody waits for its answer
            raise
        except StoreBusy:
            raise Unavailable("too many requests came at once; try again shortly", retry_after=1.0) from None
        except StoreAway:
            limit = self._local_max()
            granted = self._held_here() + hold.sequences <= self._largest_sum(hold, limit)
            outcome = LimitOutcome.LOCAL
        if not granted:
            self._give_back(member)
            raise Unavailable(
                f"all {limit} places for candidates are taken; try again later or ask for fewer candidates",
                retry_after=1.0,
            )
        self._holds[member] = hold
        return outcome

    async def _take_shared(self, member: str, hold: _Hold) -> bool:
        released = self._some_released()
        largest, marked_ms = self._largest_sum(hold, self._shared_max()), 0 if hold.spare_only else _WANTED_MS
        args: list[Argument] = [member, hold.sequences, largest, hold.lifetime_ms(), marked_ms, *released]
        granted = bool(await self._link.run(scripts.TAKE, [_KEY, _WANTED_KEY], args))
        self._forget(released)
        return granted

    def _largest_sum(self, hold: _Hold, places: int) -> int:
        return max(int(self._spare_share * places) if hold.spare_only else places, hold.sequences)

    async def _quietly(self, holds: Mapping[str, _Hold]) -> None:
        with suppress(StoreAway):  # what is owed is kept; the recovery hook pays it
            if holds or self._released:
                await self._assert(holds, recovering=False)

    async def _assert_again(self) -> None:
        await self._assert(self._holds, recovering=True)

    async def _assert(self, holds: Mapping[str, _Hold], *, recovering: bool) -> None:
        """Tell Redis what was released, and of these holds that they are still held."""
        released, asserted = self._some_released(), dict(holds)
        held = [value for member, hold in asserted.items() for value in (member, hold.lifetime_ms())]
        try:
            await self._link.run(scripts.ASSERT, [_KEY], [len(released), *released, *held], recovering=recovering)
            self._forget(released)
        finally:
            for member in asserted.keys() - self._holds.keys():
                self._give_back(member)  # released meanwhile: this call may have put it back after it was taken out

    def _give_back(self, member: str) -> None:
        self._released[member] = time.monotonic()
        if self._link.up:
            self._wake.set()

    def _forget(self, members: list[str]) -> None:
        for member in members:
            self._released.pop(member, None)

    def _some_released(self) -> list[str]:
        return [member for member, _ in zip(self._released, range(_MAX_RELEASED_IN_ONE_CALL), strict=False)]

    def _held_here(self) -> int:
        return sum(hold.sequences for hold in self._holds.values())
