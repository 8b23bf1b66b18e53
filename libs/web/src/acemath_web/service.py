"""The one assembler: what stands around every service's own routes, in one order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from acemath_web.auth import BearerMiddleware, Callers, KeySet
from acemath_web.context import RequestIdMiddleware
from acemath_web.errors import LastResortMiddleware, install_error_handlers
from acemath_web.health import Readiness, health_router
from acemath_web.hosts import LoopbackHostMiddleware
from acemath_web.limits import BodyLimitMiddleware
from acemath_web.linger import LingeringCloseMiddleware
from acemath_web.metrics import HttpMetrics, metrics_router
from acemath_web.outcomes import OutcomeMiddleware
from acemath_web.published import publish

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_service(
    *,
    name: str,
    routers: Sequence[APIRouter],
    readiness: Callable[[], Readiness],
    registry: CollectorRegistry,
    keys: Callers,
    lifespan: Lifespan,
    max_body_bytes: int,
    internal_keys: KeySet | None = None,
    open_paths: frozenset[str] = frozenset(),
    loopback_only: bool = False,
) -> FastAPI:
    """A service's ASGI application: its routes inside what stands around each of them.

    Args:
        name: one word, the middle of its metric names.
        routers: the service's own routes.
        readiness: the cached verdict that `/readyz` answers with.
        registry: the Prometheus registry that `/metrics` renders.
        keys: who may call; where they are not required, everybody may (the service's settings decide whether that may
            be).
        lifespan: opens and closes what the routes use.
        max_body_bytes: a longer body is answered with 413.
        internal_keys: what `/metrics` asks for where callers have keys; None where only the internal network reaches
            the port. Both kinds of keys open `/readyz?verbose`.
        open_paths: paths that need no key, besides the probes.
        loopback_only: refuse every `Host` but loopback's.
    """
    app = FastAPI(title=f"AceMath {name}", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    for router in (*routers, health_router(readiness), metrics_router(registry)):
        app.include_router(router)
    install_error_handlers(app)
    publish(app, keyed=keys.required, open_paths=open_paths)
    # The last one added is the outermost: the id is there for whatever the others refuse, every refusal is counted, and
    # whoever of them answers before the body is read, the caller gets to read the answer.
    app.add_middleware(BodyLimitMiddleware, max_bytes=max_body_bytes)
    if loopback_only:
        app.add_middleware(LoopbackHostMiddleware)
    app.add_middleware(BearerMiddleware, callers=keys, internal_keys=internal_keys, open_paths=open_paths)
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(OutcomeMiddleware, metrics=HttpMetrics(name, registry))
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(LingeringCloseMiddleware)
    return app
