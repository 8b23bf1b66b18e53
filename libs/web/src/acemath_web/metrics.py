"""One `CollectorRegistry` for each application object, and the HTTP figures that every service reports alike."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

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
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "HTTP requests being answered", registry=registry)

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request that has ended; `route` is a template and `method` one of a few, never a caller's text."""
        counted, timed = self._children(route, method, status)
        counted.inc()
        timed.observe(seconds)

    def _children(self, route: str, method: str, status: int) -> tuple[Counter, Histogram]:
        """Found once: looking one up by its labels takes longer than counting."""
        key = route, method, status
        if key not in self._known:
            self._known[key] = self.requests.labels(route, method, str(status)), self.duration.labels(route, method)
        return self._known[key]


def metrics_router(registry: CollectorRegistry) -> APIRouter:
    """`GET /metrics` in the Prometheus text format, the process's memory, CPU time and open files among them."""
    ProcessCollector(registry=registry)
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
