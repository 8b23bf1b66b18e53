"""The stores of one gateway on a real server, as its tests open and ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager

from acemath_core.deadline import Deadline
from acemath_core.errors import Unavailable
from acemath_gateway.adapters.redis_answers import RedisAnswerStore
from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_keys import RedisKeyStore
from acemath_gateway.adapters.redis_limit import RedisSequenceLimit
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.adapters.redis_quota import RedisQuotaStore
from acemath_gateway.adapters.redis_store import RedisIdempotencyStore, RedisLeaseStore
from acemath_gateway.jobqueue.store import Rules
from acemath_gateway.shared import SharedStores, running
from doubles.gateway_app import eventually_true

LONG = 30.0


@asynccontextmanager
async def stores(
    url: str,
    *,
    shared_max: int | Callable[[], int] = 8,
    local_max: int = 4,
    keep: bool = True,
    instance: str = "a",
    timeout: float = 3.0,
):
    """One gateway's stores; without `keep` it is one that died: nothing is asserted again."""
    shared = shared_max if callable(shared_max) else lambda: shared_max
    link = RedisLink(url, timeout_seconds=timeout, on_change=lambda up: None)
    opened = SharedStores(
        RedisSequenceLimit(link, shared_max=shared, local_max=lambda: local_max),
        RedisIdempotencyStore(link, ttl_seconds=60),
        RedisLeaseStore(link, instance=instance),
        RedisKeyStore(link),
        RedisQuotaStore(link),
        RedisAnswerStore(link, ttl_seconds=60, total_bytes=2**20),
        RedisJobStore(link, Rules(10, 10, 1000, 60, 60), instance=instance),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        await link.connect()
        if keep:
            for work in (link.watch(), opened.limit.keep(), opened.idempotency.keep()):
                await stack.enter_async_context(running("keep", work))
        yield opened


async def free_places(limit, most: int = 64) -> int:
    """How many single sequences still fit, by asking for them."""
    async with AsyncExitStack() as stack:
        for taken in range(most):
            try:
                await stack.enter_async_context(limit.hold("probe", 1, Deadline.after(LONG)))
            except Unavailable:
                return taken
    return most


async def come_free(limit, places: int) -> None:
    """Wait until so many places are free: what was held is given back by a task in the background."""

    async def free() -> bool:
        return await free_places(limit) == places

    await eventually_true(free)


class HeldScript:
    """Stands for a script on a server that answers when it is let; counts how many run at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.let_go, self.error = asyncio.Event(), error
        self.running = self.most = 0

    async def __call__(self, keys, args) -> object:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.let_go.wait()
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return 1
