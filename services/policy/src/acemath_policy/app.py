"""The agent as an ASGI application: a reconcile loop in its lifespan, a few routes around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_policy.metrics import PolicyMetrics
from acemath_policy.reconcile import Reconciler
from acemath_policy.routes import TARGETS_PATH, policy_router
from acemath_web.auth import KeySet
from acemath_web.service import create_service

_MAX_BODY_BYTES = 65536  # nothing is ever sent to the agent


def create_app(make_reconciler: Callable[[PolicyMetrics], Reconciler], key: SecretStr | None) -> FastAPI:
    """The agent's application.

    Args:
        make_reconciler: makes what does the work; it runs from start-up to shut-down.
        key: the internal key, which `/v1/slots` asks for; None admits everybody.
    """
    registry = CollectorRegistry()
    reconciler = make_reconciler(PolicyMetrics(registry))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        rounds = asyncio.create_task(reconciler.run())
        try:
            yield
        finally:
            rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await rounds
            await reconciler.close()

    return create_service(
        name="policy",
        routers=[policy_router(reconciler.slots)],
        readiness=reconciler.readiness,
        registry=registry,
        keys=KeySet([key] if key else []),
        lifespan=lifespan,
        max_body_bytes=_MAX_BODY_BYTES,
        open_paths=frozenset({TARGETS_PATH}),  # Prometheus discovers by it; it tells addresses only
    )
