"""What the routes are given; the application's lifespan makes it, and a request finds it at `app.state.parts`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from acemath_core.deadline import Deadline
from acemath_core.errors import ServiceError
from acemath_core.wire import Wire
from acemath_gateway.canary import CanaryView
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.routes.cached import Cached
from acemath_gateway.routes.once import Answer, Once
from acemath_gateway.routes.rejections import count_rejection
from acemath_gateway.service import SolveService
from acemath_gateway.solve_wire import Limits


@dataclass(frozen=True, slots=True)
class Parts:
    """The gateway as its routes see it.

    Attributes:
        service: admits and solves.
        once: one answer for one key.
        cached: answers that are given again.
        limits: what is allowed beyond the schemas.
        metrics: the gateway's own figures.
        door: the figures of the door.
        serving: the release that new requests get, or None while there is none.
        canary: the release that a share of them is to get beside it, or None while there is none.
    """

    service: SolveService
    once: Once
    cached: Cached
    limits: Limits
    metrics: GatewayMetrics
    door: DoorMetrics
    serving: Callable[[], ReleaseTarget | None]
    canary: Callable[[], CanaryView | None]

    async def answer(
        self, request: Request, key: str | None, body: Wire, deadline: Deadline, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer of `work`, or what an earlier request with its Idempotency-Key, or one just like it, got.

        Raises:
            ServiceError: what `Once.answer` or `work` raises.
        """
        return await self.once.answer(request, key, body, deadline, lambda: self.cached.answer(request, body, work))

    def stream_headers(self) -> dict[str, str]:
        """Of a stream that starts now: the release that every new request gets; its last event names its own."""
        target = self.serving() if self.canary() is None else None
        return {"x-acemath-release": target.release} if target else {}

    def client_left(self) -> None:
        """Count a client that closed its connection before its answer."""
        self.metrics.disconnects.inc()

    def failed_in_stream(self, error: ServiceError) -> None:
        """Count a request that is refused after its stream has begun, when no status line can say so any more."""
        count_rejection(self.metrics, error.code)


def parts_of(request: Request) -> Parts:
    """The parts of the application that serves this request."""
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts
