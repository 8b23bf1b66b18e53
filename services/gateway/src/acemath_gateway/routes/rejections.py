"""Counts the requests that were not started, by the reason code in their answers, wherever they were refused."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_core.errors import ErrorCode
from acemath_gateway.metrics import GatewayMetrics, RejectionReason

_REASONS: dict[str, RejectionReason] = {
    ErrorCode.INVALID_REQUEST: RejectionReason.INVALID,
    ErrorCode.UNSUPPORTED_PARAMETER: RejectionReason.INVALID,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: RejectionReason.INVALID,
    ErrorCode.MODEL_NOT_FOUND: RejectionReason.INVALID,
    ErrorCode.REQUEST_TOO_LARGE: RejectionReason.TOO_LARGE,
    ErrorCode.INVALID_API_KEY: RejectionReason.UNAUTHENTICATED,
    ErrorCode.INSUFFICIENT_SCOPE: RejectionReason.UNAUTHENTICATED,
    ErrorCode.KEYS_UNAVAILABLE: RejectionReason.KEYS,
    ErrorCode.REQUESTS_QUOTA_EXCEEDED: RejectionReason.QUOTA,
    ErrorCode.TOKENS_QUOTA_EXCEEDED: RejectionReason.QUOTA,
    ErrorCode.SEQUENCES_QUOTA_EXCEEDED: RejectionReason.QUOTA,
    ErrorCode.IDEMPOTENCY_CONFLICT: RejectionReason.IDEMPOTENCY,
    ErrorCode.IDEMPOTENCY_UNAVAILABLE: RejectionReason.IDEMPOTENCY,
    ErrorCode.OVERLOADED: RejectionReason.OVERLOADED,
    ErrorCode.NOT_READY: RejectionReason.NOT_READY,
}


def count_rejection(metrics: GatewayMetrics, code: str) -> None:
    """Count a request that was refused with an error code; other codes are of requests that were started."""
    reason = _REASONS.get(code)
    if reason is not None:
        metrics.rejections.labels(reason).inc()


class RejectionMiddleware:
    """Stands outside everything else, so that what is refused before a route is reached is counted too.

    Args:
        app: what answers.
        count: told the error code of every answer that has one.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str], None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and read the headers of the answer."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in message.get("headers", ()):
                    if name == b"x-acemath-error-code":
                        self._count(value.decode("latin-1"))
            await send(message)

        await self._app(scope, receive, noted if scope["type"] == "http" else send)
