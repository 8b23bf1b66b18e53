"""The service as an ASGI application; knows the port `RewardModel`, never torch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_registry import Registry, configured_keys
from acemath_registry.following import StatusLeases
from acemath_reward.admission import QueueLimits
from acemath_reward.basic_key import BasicKeyMiddleware
from acemath_reward.batcher import Batcher
from acemath_reward.document import describe
from acemath_reward.ending import end_process
from acemath_reward.live.routes import live_router
from acemath_reward.live.service import LiveService
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader
from acemath_reward.reconcile import Reconciler
from acemath_reward.routes import reward_router
from acemath_reward.scoring import ScoreService
from acemath_reward.settings import RewardSettings
from acemath_reward.shapes import shape_routers
from acemath_web.auth import KeySet
from acemath_web.service import create_service


def create_app(settings: RewardSettings, load_model: ModelLoader, key: SecretStr | None = None) -> FastAPI:
    """The application: alive while versions load, ready once one is active.

    Args:
        settings: the service's.
        load_model: makes a model of a checkpoint directory; called in a thread.
        key: the internal key that callers show; None admits everybody.

    Raises:
        SettingsError: the keys that sign versions cannot be used.
    """
    instruments = CollectorRegistry()
    metrics = RewardMetrics(instruments)
    batcher = Batcher(QueueLimits(settings.max_queue_tokens, settings.max_queue_items), metrics)
    registry = Registry(settings.registry_root, trusted=configured_keys(settings.signature_keys_file))
    leases = StatusLeases(registry, settings.channel, settings.lease_record_max_age_seconds)
    reconciler = Reconciler(settings, registry, load_model, batcher, leases, metrics, end_process)
    service = ScoreService(settings, reconciler, batcher, metrics)
    live = LiveService(settings, service, batcher, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        rounds = asyncio.create_task(reconciler.run())
        try:
            yield
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
            await asyncio.to_thread(batcher.close)
            await reconciler.close()
            service.close()

    keys, seconds = KeySet([key] if key else []), settings.default_deadline_seconds
    app = create_service(
        name="reward",
        routers=[
            reward_router(service, reconciler.slots, seconds),
            live_router(live, keys, settings.live_idle_seconds, metrics),
            *shape_routers(service, seconds),
        ],
        readiness=reconciler.readiness,
        registry=instruments,
        keys=keys,
        lifespan=lifespan,
        max_body_bytes=settings.max_body_bytes,
    )
    describe(app)
    app.add_middleware(BasicKeyMiddleware)  # outermost: what it makes of the header is checked inside
    app.state.drain = live.drain  # what serves the application calls it when it is told to stop
    return app
