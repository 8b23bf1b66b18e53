"""What became of each request: found out once, from what was sent and received, then counted and logged."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_web.access import log_request
from acemath_web.context import current_facts
from acemath_web.matching import routes_at
from acemath_web.metrics import HttpMetrics

_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_GONE, _FAILED = 499, 500


@dataclass(slots=True)
class Outcome:
    """One request as it goes.

    Attributes:
        status: of the response; 499 when the caller left before its end, 500 when an exception broke it off.
        code: the code of the error that was answered, None when none was.
    """

    scope: Scope
    status: int | None = None
    code: str | None = None
    _whole: bool = False
    _begun: float = field(default_factory=time.perf_counter)

    @property
    def route(self) -> str:
        """The template of the route, so that a path never becomes a label; `unmatched` where there is none.

        Who has no key is refused before a route is looked for; who is paged for it wants to know what was asked.
        """
        route = self.scope.get("route") or next(iter(routes_at(self.scope)), None)
        return getattr(route, "path", "unmatched")

    @property
    def method(self) -> str:
        """The method, or `other` for one that nobody has heard of."""
        method: str = self.scope["method"]
        return method if method in _METHODS else "other"

    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._begun

    def sent(self, message: Message) -> None:
        """Take in a message to the caller."""
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            code = headers.get(b"x-acemath-error-code")
            self.status = self.status or message["status"]
            self.code = code.decode("ascii", "replace") if code else None
        elif message["type"] == "http.response.body":
            self._whole = not message.get("more_body", False)

    def received(self, message: Message) -> None:
        """Take in a message from the server: a disconnect before the end of the answer is a caller that left."""
        if message["type"] == "http.disconnect" and not self._whole:
            self.status = _GONE

    def raised(self, error: BaseException) -> None:
        """Take in what broke the work off."""
        if not self._whole and self.status != _GONE:
            self.status = _GONE if isinstance(error, asyncio.CancelledError) else _FAILED


class OutcomeMiddleware:
    """Follows every request to its end counts it and logs it under its route's template."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application and record what became of the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        outcome = Outcome(scope)
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._follow(outcome, receive, send)
            except BaseException as error:
                outcome.raised(error)
                raise
            finally:
                self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        route, method, seconds = outcome.route, outcome.method, outcome.seconds()
        status = outcome.status or _FAILED
        self._metrics.record(route, method, status, seconds)
        facts = current_facts()
        log_request(method=method, route=route, status=status, seconds=seconds, code=outcome.code, facts=facts)

    async def _follow(self, outcome: Outcome, receive: Receive, send: Send) -> None:
        async def noted() -> Message:
            message = await receive()
            outcome.received(message)
            return message

        async def answered(message: Message) -> None:
            outcome.sent(message)
            await send(message)

        await self._app(outcome.scope, noted, answered)
