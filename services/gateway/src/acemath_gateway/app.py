"""Ports in, an ASGI application out. What stands behind the ports is made by the factory that is passed in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from acemath_gateway.admission import Admission
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.keys.access import FILE_CALLER
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import IdempotencyStore, ReleaseTarget, SequenceLimit
from acemath_gateway.readiness import ReadyState
from acemath_gateway.routes.chat import chat_router
from acemath_gateway.routes.models import models_router
from acemath_gateway.routes.once import Once
from acemath_gateway.routes.page import page_router
from acemath_gateway.routes.parts import Parts
from acemath_gateway.routes.rejections import RejectionMiddleware, count_rejection
from acemath_gateway.routes.solve import solve_router
from acemath_gateway.service import Runs, SolveService
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.solve_wire import Limits
from acemath_web.auth import KeySet
from acemath_web.health import Readiness
from acemath_web.service import create_service

_OPEN_PATHS = frozenset({"/", "/openapi.json"})  # the page and the schema hold nothing that a key protects


@dataclass(frozen=True, slots=True)
class Backends:
    """What the gateway stands on, ready to be used.

    Attributes:
        solver: does the work.
        limit: the bound on sequences in flight.
        idempotency: one answer for one key.
        serving: the release that new requests get, or None while there is none.
        readiness: the cached verdict on that release.
    """

    solver: Runs
    limit: SequenceLimit
    idempotency: IdempotencyStore
    serving: Callable[[], ReleaseTarget | None]
    readiness: Callable[[], Readiness]


BackendsFactory = Callable[[GatewaySettings, GatewayMetrics, DoorMetrics], AbstractAsyncContextManager[Backends]]
DuringService = Callable[[ReadyState], AbstractContextManager[None]]


def create_app(settings: GatewaySettings, backends: BackendsFactory, during: DuringService) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        settings: the gateway's settings.
        backends: opens what stands behind the ports; entered when the application starts, left when it stops.
        during: entered for as long as the application serves (e.g. `drain_on_signal`).

    Raises:
        SettingsError: the API keys cannot be used, or none are configured on an address that others can reach.
    """
    registry, state = CollectorRegistry(), ReadyState()
    internal = settings.internal_key()
    metrics, door, limits = GatewayMetrics.on(registry), DoorMetrics.on(registry), _limits(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with backends(settings, metrics, door) as opened:
            app.state.parts = _parts(settings, metrics, door, opened)
            state.opened(opened.readiness)
            with during(state):
                yield

    keys = KeySet(settings.api_keys(), FILE_CALLER)
    app = create_service(
        name="gateway",
        routers=(solve_router(limits), chat_router(limits), models_router(), page_router()),
        readiness=state.verdict,
        registry=registry,
        keys=keys,
        internal_keys=KeySet(
            [internal] if internal else []
        ),  # this port may be published; a caller's key is no key to it
        lifespan=lifespan,
        max_body_bytes=settings.max_body_bytes,
        open_paths=_OPEN_PATHS,
        loopback_only=not keys,  # without keys there is only loopback, and a page from elsewhere must not get in
    )
    app.add_middleware(RejectionMiddleware, count=partial(count_rejection, metrics))
    return app


def _parts(settings: GatewaySettings, metrics: GatewayMetrics, door: DoorMetrics, backends: Backends) -> Parts:
    admission = Admission(
        backends.limit,
        max_sequences=settings.max_sequences_in_flight,
        max_queued=settings.max_queued_requests,
        max_wait_seconds=settings.max_queue_seconds,
        patience_seconds=settings.queue_patience_seconds,
        metrics=door,
    )
    return Parts(
        service=SolveService(admission, backends.solver),
        once=Once(backends.idempotency, door.idempotency),
        limits=_limits(settings),
        metrics=metrics,
        door=door,
        serving=backends.serving,
    )


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(
        max_problem_chars=settings.max_problem_chars,
        default_deadline_seconds=settings.default_deadline_seconds,
        max_deadline_seconds=settings.max_deadline_seconds,
    )
