"""`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` on every answer to a request that was charged to a quota."""

from __future__ import annotations

from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_gateway.keys.quotas import Bill

_bills: ContextVar[list[Bill] | None] = ContextVar("acemath_quota_bills", default=None)


def tell_bill(bill: Bill) -> None:
    """Have the answer to the request that this task works for say what is left; outside a request nothing happens."""
    bills = _bills.get()
    if bills is not None:
        bills.append(bill)


class QuotaHeadersMiddleware:
    """Adds the headers when the answer starts, errors included; a stream starts before its tokens are counted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bills: list[Bill] = []
        token = _bills.set(bills)

        async def told(message: Message) -> None:
            if bills and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(quota_headers(bills[-1]))
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            _bills.reset(token)


def quota_headers(bill: Bill) -> dict[str, str]:
    """The headers of a bill; none when nothing was counted. `reset` is a duration such as `1.500s`, as OpenAI's is."""
    headers: dict[str, str] = {}
    standing = bill.standing
    if standing is None:
        return headers
    if bill.quotas.requests_per_minute is not None:
        left, reset = standing.requests, standing.requests_reset_seconds
        headers |= _triple("requests", bill.quotas.requests_per_minute, left, reset)
    if bill.quotas.tokens_per_minute is not None:
        per_minute = bill.quotas.tokens_per_minute
        reset = standing.tokens_reset_seconds + 60 * bill.tokens / per_minute
        headers |= _triple("tokens", per_minute, standing.tokens - bill.tokens, reset)
    return headers


def _triple(what: str, limit: int, left: int, reset_seconds: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, left)),
        f"x-ratelimit-reset-{what}": f"{max(0.0, reset_seconds):.3f}s",
    }
