"""One `CollectorRegistry` for each application object, and the HTTP figures that every service reports alike."""

from __future__ import annotations

import time

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class HttpMetrics:
    """Requests by route, method and status, their duration, and how many are in flight.

    Args:
        service: the one-word service name; metric names begin with `acemath_<service>_`.
        registry: where the instruments live; a test makes its own.
    """

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        prefix, labels = f"acemath_{service}_http", ("route", "method")
        self.requests = Counter(f"{prefix}_requests", "HTTP requests answered", (*labels, "status"), registry=registry)
        self.duration = Histogram(
            f"{prefix}_request_duration_seconds",
            "from first byte in to last byte out",
            labels,
            registry=registry,
            buckets=_SECONDS,
        )
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "HTTP requests being answered", registry=registry)


class HttpMetricsMiddleware:
    """Counts and times every request under its route's template, so that a path never becomes a label."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application and record what became of the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "499"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, noted)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = (
            scope["method"]
            if scope["method"] in ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")
            else "other"
        )
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.duration.labels(route, method).observe(seconds)


def metrics_router(registry: CollectorRegistry) -> APIRouter:
    """`GET /metrics` in the Prometheus text format."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
