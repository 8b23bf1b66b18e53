"""Ports in, an ASGI application out. What stands behind the ports is made by the factory that is passed in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from acemath_gateway.admission import Admission
from acemath_gateway.canary import CanaryView
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.jobqueue.assembly import open_jobs
from acemath_gateway.jobqueue.hooks import Hooks, WebhookSender
from acemath_gateway.jobqueue.metrics import JobMetrics
from acemath_gateway.jobqueue.store import JobStore
from acemath_gateway.keys.access import ADMIN_CALLER, FILE_CALLER
from acemath_gateway.keys.book import KeyBook
from acemath_gateway.keys.door import QuotaDoor
from acemath_gateway.keys.quotas import QuotaStore
from acemath_gateway.keys.store import KeyStore
from acemath_gateway.keys.told import QuotaHeadersMiddleware
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import AnswerStore, IdempotencyStore, ReleaseTarget, SequenceLimit
from acemath_gateway.promotion import ChannelChanges
from acemath_gateway.readiness import ReadyState
from acemath_gateway.routes.admin_keys import admin_keys_router
from acemath_gateway.routes.admin_parts import AdminParts
from acemath_gateway.routes.admin_releases import admin_releases_router
from acemath_gateway.routes.cached import Cached
from acemath_gateway.routes.chat import chat_router
from acemath_gateway.routes.job_parts import JobParts
from acemath_gateway.routes.jobs import jobs_router
from acemath_gateway.routes.models import models_router
from acemath_gateway.routes.once import Once
from acemath_gateway.routes.page import page_router
from acemath_gateway.routes.parts import Parts
from acemath_gateway.routes.rejections import RejectionMiddleware, count_rejection
from acemath_gateway.routes.solve import solve_router
from acemath_gateway.service import Runs, SolveService
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.solve_wire import Limits
from acemath_gateway.trace_context import TraceContextMiddleware
from acemath_registry import Registry
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
        jobs: where jobs are kept.
        webhooks: carries word of their ends.
        keys: where API keys are kept.
        quotas: where their use is counted.
        answers: where answers are kept that may be given again.
        canary: the release that a share of the requests is to get beside it, or None while there is none.
    """

    solver: Runs
    limit: SequenceLimit
    idempotency: IdempotencyStore
    serving: Callable[[], ReleaseTarget | None]
    readiness: Callable[[], Readiness]
    jobs: JobStore
    webhooks: WebhookSender
    keys: KeyStore
    quotas: QuotaStore
    answers: AnswerStore
    canary: Callable[[], CanaryView | None]


BackendsFactory = Callable[[GatewaySettings, GatewayMetrics, DoorMetrics], AbstractAsyncContextManager[Backends]]
DuringService = Callable[[ReadyState], AbstractContextManager[None]]


def create_app(
    settings: GatewaySettings, backends: BackendsFactory, during: DuringService, admin_key: SecretStr | None = None
) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        settings: the gateway's settings.
        backends: opens what stands behind the ports; entered when the application starts, left when it stops.
        during: entered for as long as the application serves (e.g. `drain_on_signal`).
        admin_key: the first key with the scope admin (`keys.first`); None leaves those that are kept.

    Raises:
        SettingsError: the API keys or the webhooks' secret cannot be used, or there are no keys on an address that
            others can reach.
    """
    registry, state, internal = CollectorRegistry(), ReadyState(), settings.internal_key()
    metrics, book = _Metrics.on(registry), _key_book(settings, admin_key)
    metrics.gateway.ready.set_function(lambda: float(state.verdict().ready))
    app = create_service(
        name="gateway",
        routers=_routers(settings),
        readiness=state.verdict,
        registry=registry,
        keys=book,
        # This port may be published; a caller's key is no key to it.
        internal_keys=KeySet([internal] if internal else []),
        lifespan=_Lifespan(settings, backends, during, metrics, book, state).of,
        max_body_bytes=settings.max_body_bytes,
        open_paths=_OPEN_PATHS,
        loopback_only=not book.required,  # a page from elsewhere must not get in where everybody here may
    )
    app.add_middleware(QuotaHeadersMiddleware)
    app.add_middleware(TraceContextMiddleware)
    app.add_middleware(RejectionMiddleware, count=partial(count_rejection, metrics.gateway))
    return app


@dataclass(frozen=True, slots=True)
class _Metrics:
    """The instruments of all parts."""

    gateway: GatewayMetrics
    door: DoorMetrics
    jobs: JobMetrics

    @classmethod
    def on(cls, registry: CollectorRegistry) -> _Metrics:
        jobs = JobMetrics.on(registry)
        return cls(GatewayMetrics.on(registry), DoorMetrics.on(registry), jobs)


@dataclass(frozen=True, slots=True)
class _Lifespan:
    """From the application's start to its end: what stands behind the ports is open, and jobs are worked on."""

    settings: GatewaySettings
    backends: BackendsFactory
    during: DuringService
    metrics: _Metrics
    book: KeyBook
    state: ReadyState

    @asynccontextmanager
    async def of(self, app: FastAPI) -> AsyncIterator[None]:
        """One start of the application and its end."""
        async with self.backends(self.settings, self.metrics.gateway, self.metrics.door) as opened:
            parts = app.state.parts = _parts(self.settings, self.metrics, opened)
            changes = ChannelChanges(Registry(self.settings.registry_root))
            app.state.admin = AdminParts(opened.keys, self.book, changes)
            self.book.opened(opened.keys)
            self.state.opened(opened.readiness)
            async with self._jobs(opened, parts) as app.state.jobs:
                with self.during(self.state):
                    yield

    def _jobs(self, opened: Backends, parts: Parts) -> AbstractAsyncContextManager[JobParts]:
        def ready() -> bool:
            return self.state.verdict().ready

        return open_jobs(self.settings, opened.jobs, opened.webhooks, parts, self.book, ready, self.metrics.jobs)


def _routers(settings: GatewaySettings) -> tuple[APIRouter, ...]:
    limits = _limits(settings)
    hooks = Hooks.of(settings)  # a secret that cannot be used is found now, not when the first job ends
    return (
        solve_router(limits),
        chat_router(limits),
        jobs_router(limits, webhooks=hooks.key is not None),
        models_router(),
        admin_keys_router(),
        admin_releases_router(),
        page_router(),
    )


def _key_book(settings: GatewaySettings, admin_key: SecretStr | None) -> KeyBook:
    return KeyBook(
        [KeySet(settings.api_keys(), FILE_CALLER), KeySet([admin_key] if admin_key else [], ADMIN_CALLER)],
        required=settings.keys_required(),
        fresh_seconds=settings.key_cache_seconds,
        grace_seconds=settings.key_grace_seconds,
    )


def _parts(settings: GatewaySettings, metrics: _Metrics, backends: Backends) -> Parts:
    admission = Admission(
        backends.limit,
        max_sequences=settings.largest_request(),
        max_queued=settings.max_queued_requests,
        max_wait_seconds=settings.max_queue_seconds,
        patience_seconds=settings.queue_patience_seconds,
        metrics=metrics.door,
    )
    return Parts(
        service=SolveService(admission, backends.solver, QuotaDoor(backends.quotas)),
        once=Once(backends.idempotency, metrics.door.idempotency),
        cached=_cached(settings, metrics, backends),
        limits=_limits(settings),
        metrics=metrics.gateway,
        door=metrics.door,
        serving=backends.serving,
        canary=backends.canary,
    )


def _cached(settings: GatewaySettings, metrics: _Metrics, backends: Backends) -> Cached:
    def release() -> str | None:
        target = backends.serving()
        return target.release if target else None

    ours = version("acemath-gateway")
    rules = f"{ours}\0{settings.adaptive_confidence}\0{settings.reject_rules()}\0{settings.calibration()}"
    return Cached(backends.answers if settings.answer_cache_seconds else None, rules, release, metrics.door.cached)


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(
        max_problem_chars=settings.max_problem_chars,
        default_deadline_seconds=settings.default_deadline_seconds,
        max_deadline_seconds=settings.max_deadline_seconds,
        live_scoring=settings.live_scoring,
        rejection=settings.reject_rules(),
    )
