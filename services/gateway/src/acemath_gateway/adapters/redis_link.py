"""The one connection to Redis, and the breaker that makes an absent Redis cost microseconds instead of seconds.

A connection that breaks twice in a row (each call has two), or a failed ping, opens the breaker; from then on every
call raises `StoreAway` at once. A time-out alone does not, since it may be our own machine that is busy: it makes the
task in the background ask. That task asks until Redis answers, re-asserts what this gateway holds (the recovery
hooks), and only then closes the breaker: no request ever pays for a probe, and nobody counts before the holds are back.

Fewer calls run at once than there are connections; the others wait their turn, and one that waits too long is told that
we are busy (`StoreBusy`), which says nothing about Redis.

Commands stay within Redis 6.2.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

_log = logging.getLogger(__name__)

_PROBE_FIRST_SECONDS = 0.1
_PROBE_LONGEST_SECONDS = 2.0
_MAX_CONNECTIONS = 32
_MAX_CALLS = 28  # the rest is for pings and recovery
_BUSY_SECONDS = 2.0
_VERDICT_SECONDS = 0.1  # a ping of a server that is well takes a fraction of it

ASSERT_SECONDS = 5.0
"""How often holds, claims and leases are asserted again by the gateway that has them."""
LIFETIME_SECONDS = 15.0
"""How long they outlive it."""

Argument = str | bytes | int | float


class StoreAway(Exception):
    """Redis does not answer, or the breaker is open because it did not a moment ago."""


class StoreBusy(StoreAway):
    """Redis may be well; this gateway has more to ask it than it can at once."""


class _Script(Protocol):
    """What redis-py's registered script offers: EVALSHA, and SCRIPT LOAD when the server forgot it."""

    async def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> object: ...


class RedisLink:
    """Runs Lua scripts on one Redis, or says at once that it is away.

    Args:
        url: `redis://` or `rediss://` address.
        timeout_seconds: longest wait for an answer, for a connection to ask on included.
        on_change: told True when Redis is back and False when it is lost.
    """

    def __init__(self, url: str, *, timeout_seconds: float, on_change: Callable[[bool], None]) -> None:
        self._timeout = timeout_seconds
        self._client = Redis(connection_pool=_pool(url, timeout_seconds))
        self._on_change = on_change
        self._up = self._said_away = False
        self._look, self._known = asyncio.Event(), asyncio.Event()
        self._turns = asyncio.Semaphore(_MAX_CALLS)
        self._hooks: list[Callable[[], Awaitable[None]]] = []
        self._scripts: dict[str, _Script] = {}
        self._running, self._quiet = 0, asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._up

    def on_recovery(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Have `hook` awaited each time Redis is back, before anything else uses it; it may raise `StoreAway`."""
        self._hooks.append(hook)

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[Argument], *, recovering: bool = False
    ) -> object:
        """Run a Lua script in one round trip.

        Args:
            script: the source; registered at first use.
            keys: `KEYS`.
            args: `ARGV`.
            recovering: pass the open breaker; only for recovery hooks.

        Raises:
            StoreBusy: no turn came within `_BUSY_SECONDS`.
            StoreAway: at once while the breaker is open, else after the time-out.
        """
        if recovering:
            return await self._answer(script, keys, args)
        await self._check_up()
        await self._turn()
        try:
            await self._check_up()  # it may have been lost while we waited
        except BaseException:
            self._turns.release()
            raise
        return await self._answer(script, keys, args, then=self._turns.release)

    async def connect(self) -> bool:
        """Ask once whether Redis is there; True closes the breaker."""
        try:
            await self._bounded(self._client.ping())
            for hook in self._hooks:
                await hook()
        except (RedisError, OSError, TimeoutError, StoreAway) as error:
            self._lose(error)
            self._known.set()
            return False
        self._look.clear()
        self._known.set()
        if not self._up:
            self._up = True
            self._on_change(True)
            _log.info("redis answers")
        return True

    async def watch(self) -> None:
        """Look whenever a call failed, and bring the link back when it is lost; runs until cancelled."""
        while True:
            await self._look.wait()
            pause = _PROBE_FIRST_SECONDS
            while not await self.connect():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PROBE_LONGEST_SECONDS)

    async def close(self) -> None:
        """Close every connection."""
        self._up = False
        if self._running:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._quiet.wait()
        with suppress(TimeoutError):  # the end of a TLS connection waits for the other side
            async with asyncio.timeout(self._timeout):
                await self._client.aclose()
                await self._client.connection_pool.disconnect()

    async def _check_up(self) -> None:
        if self._up and not self._known.is_set():
            try:
                async with asyncio.timeout(_VERDICT_SECONDS):
                    await self._known.wait()
            except TimeoutError:
                raise StoreAway("a call timed out, and no ping has come back since") from None
        if not self._up:
            raise StoreAway("the breaker is open")

    async def _turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()  # at once
            return
        try:
            async with asyncio.timeout(_BUSY_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreBusy("too many calls are waiting") from None

    async def _answer(
        self, script: str, keys: Sequence[str], args: Sequence[Argument], then: Callable[[], None] = lambda: None
    ) -> object:
        """The script's result; `then` is called when the call has left its connection, whoever still waits."""
        try:
            return await self._bounded(self._script(script)(keys=keys, args=args), then)
        except (RedisError, OSError, TimeoutError) as error:
            if not isinstance(error, TimeoutError | RedisTimeoutError):
                self._lose(error)
            elif self._up:
                self._known.clear()
            self._look.set()
            raise StoreAway(f"{type(error).__name__}") from error

    async def _bounded(self, call: Awaitable[object], then: Callable[[], None] = lambda: None) -> object:
        """The call's result, in time; one that is broken off closes its connection, whose answer is still to come."""
        self._running += 1
        self._quiet.clear()
        try:
            async with asyncio.timeout(self._timeout):
                return await call
        finally:
            self._running -= 1
            if not self._running:
                self._quiet.set()
            then()

    def _script(self, source: str) -> _Script:
        if source not in self._scripts:
            self._scripts[source] = cast("_Script", self._client.register_script(source))
        return self._scripts[source]

    def _lose(self, error: Exception) -> None:
        if self._up or not self._said_away:
            _log.warning("redis is away: %s", type(error).__name__)
            self._on_change(False)
        self._up, self._said_away = False, True
        self._look.set()


def _pool(url: str, timeout_seconds: float) -> ConnectionPool:
    return ConnectionPool.from_url(  # who has a turn finds a connection, so that nobody waits in the pool
        url,
        max_connections=_MAX_CONNECTIONS,
        # No time-outs of its own: a call has one (`_bounded`). With one, redis-py sends through `asyncio.wait_for`,
        # which costs a task for each command and, on Python 3.11, may swallow its caller's cancellation.
        socket_timeout=None,
        socket_connect_timeout=None,
        # Once more at once, for a pooled connection that a restarted server no longer knows: an absent one refuses at
        # once too. Every script may run twice. All further trying is the watcher's, not the caller's.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
