"""What gateways share, opened on one Redis and kept alive by tasks in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from acemath_gateway.adapters.redis_answers import RedisAnswerStore
from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_keys import RedisKeyStore
from acemath_gateway.adapters.redis_lengths import share_lengths
from acemath_gateway.adapters.redis_limit import RedisSequenceLimit
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.adapters.redis_quota import RedisQuotaStore
from acemath_gateway.adapters.redis_store import RedisIdempotencyStore, RedisLeaseStore
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.places import Places
from acemath_gateway.settings import GatewaySettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedStores:
    """The stores on one Redis."""

    limit: RedisSequenceLimit
    idempotency: RedisIdempotencyStore
    leases: RedisLeaseStore
    keys: RedisKeyStore
    quotas: RedisQuotaStore
    answers: RedisAnswerStore
    jobs: RedisJobStore


@asynccontextmanager
async def open_shared(settings: GatewaySettings, door: DoorMetrics, places: Places) -> AsyncIterator[SharedStores]:
    """Connect to Redis, or begin to look for it; leaving takes this gateway off the lists and closes everything."""
    local = settings.local_max_sequences
    link = RedisLink(
        settings.redis_url.get_secret_value(),
        timeout_seconds=settings.redis_timeout_seconds,
        on_change=lambda up: door.redis_up.set(1 if up else 0),
    )
    stores = SharedStores(
        limit=RedisSequenceLimit(
            link,
            shared_max=places.now,
            local_max=places.now if local is None else lambda: local,
            spare_share=settings.batch_share,
        ),
        idempotency=RedisIdempotencyStore(link, ttl_seconds=settings.idempotency_ttl_seconds),
        leases=RedisLeaseStore(link, instance=settings.instance),
        keys=RedisKeyStore(link),
        quotas=RedisQuotaStore(link),
        answers=RedisAnswerStore(
            link, ttl_seconds=settings.answer_cache_seconds, total_bytes=settings.answer_cache_megabytes * 2**20
        ),
        jobs=RedisJobStore(link, settings.job_rules(), instance=settings.instance),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        stack.push_async_callback(stores.leases.withdraw)
        await link.connect()
        await stack.enter_async_context(running("watch redis", link.watch()))
        await stack.enter_async_context(running("keep holds", stores.limit.keep()))
        await stack.enter_async_context(running("keep claims", stores.idempotency.keep()))
        await stack.enter_async_context(running("keep quotas", stores.quotas.keep()))
        await stack.enter_async_context(running("share lengths", share_lengths(link, settings.instance, places)))
        yield stores


@asynccontextmanager
async def running(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless work beside the block; if it ends by itself that is logged as the bug it is."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report_end)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _log.error("background work ended: %s; this is a bug", task.get_name(), exc_info=task.exception())
