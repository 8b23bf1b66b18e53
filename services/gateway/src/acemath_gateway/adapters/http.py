"""One call to a replica of another service, and whom to ask when it fails.

What the network can raise becomes one `CallFailed` with a result that metrics and callers understand; what the other
side says about *our request* becomes `InvalidRequest`. Every wait ends with the request's deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import to_json

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InvalidRequest
from acemath_gateway.adapters.addresses import host_of, origin_of
from acemath_gateway.adapters.attempts import Replicas, RetryBudget
from acemath_gateway.adapters.transport import Answer, Transport
from acemath_gateway.metrics import BROKEN, CallResult, GatewayMetrics
from acemath_gateway.trace_context import trace_headers
from acemath_web.context import REQUEST_ID_HEADER, current_request_id

Role = Literal["policy", "reward"]


_log = logging.getLogger(__name__)
MAX_CONNECTIONS = 512
"""Open connections to services of one kind, where no more is said."""
_KEEPALIVE_SECONDS = (
    3.0  # below the 5 s after which uvicorn closes an idle connection: reusing one it just closed fails
)
_MAX_BODY_BYTES = 1024 * 1024
_ALWAYS = {"accept-encoding": "identity"}
_FIRST_SUCCESS, _FIRST_REDIRECT = 200, 300
_OVERLOADED = frozenset({429, 503})
_CALLERS_FAULT = frozenset({400, 413, 422})
_NOT_SERVED = frozenset({404, 409})
_LATE = 504


class CallFailed(Exception):
    """A call to one replica that brought nothing.

    Attributes:
        result: what kind of failure, for metrics and for whether another replica may help.
        retry_after: seconds that the replica asked us to wait, if it did.
    """

    def __init__(self, result: CallResult, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.result = result
        self.retry_after = retry_after


class Upstream:
    """One kind of service behind us: its connections, the key we show it, and its figures.

    Args:
        role: which service, the label in metrics.
        key: the internal key, sent as a bearer; None sends none.
        metrics: where calls are counted.
        max_connections: bound on open connections; a call waits for one until its deadline.

    Attributes:
        host_names: origin of an address → the name it was found under, sent as `Host` (and shown to TLS).
    """

    def __init__(
        self,
        role: Role,
        *,
        key: SecretStr | None,
        metrics: GatewayMetrics,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.role, self.metrics = role, metrics
        self.replicas, self.budget = Replicas(metrics.breaker_opens.labels(role).inc), RetryBudget()
        for state in BROKEN:
            metrics.breakers.labels(role, state).set_function(partial(self.replicas.breakers.count, state))
        self.host_names: dict[str, str] = {}
        self._calls = {result: metrics.upstream_calls.labels(role, result) for result in CallResult}
        self._seconds = metrics.upstream_seconds.labels(role)
        self._authorization = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._closes: list[Callable[[], Awaitable[None]]] = []
        self.transport = Transport(max_connections=max_connections, idle_seconds=_KEEPALIVE_SECONDS)

    def may_retry(self) -> bool:
        """Whether the budget has a retry left, which is then taken; counted when not."""
        taken = self.budget.take()
        if not taken:
            self.metrics.retries_refused.labels(self.role).inc()
        return taken

    def count(self, result: CallResult, started: float | None = None) -> None:
        """Count a call that has ended, and what it took since `started` (monotonic)."""
        self._calls[result].inc()
        if started is not None:
            self._seconds.observe(time.monotonic() - started)

    def opening_headers(self) -> dict[str, str]:
        """What a connection shows that is not opened here: the key, and the id and trace of the request it is for."""
        return {**self._authorization, **_request_id(), **trace_headers()}

    def at_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have connections closed with ours that are not opened here."""
        self._closes.append(close)

    async def close(self) -> None:
        """Close every connection."""
        for close in self._closes:
            await close()
        await self.transport.close()

    async def stream(
        self, url: str, body: dict[str, Any], deadline: Deadline, *, give_up: Deadline | None = None
    ) -> Answer:
        """The answer to a POST as it arrives; closing it closes the connection, which cancels the work.

        Args:
            url: where to.
            body: what, as JSON.
            deadline: the request's; the replica is told of it.
            give_up: when to stop waiting for this replica; the deadline when None.

        Raises:
            InvalidRequest: the replica found our request at fault.
            CallFailed: there is no answer, or one of failure.
        """
        patience = give_up or deadline
        with translated(patience):
            async with asyncio.timeout(patience.remaining()):
                return await self._answer("POST", url, deadline, _as_json(body))

    async def post(
        self, url: str, body: dict[str, Any], deadline: Deadline, *, give_up: Deadline | None = None
    ) -> bytes:
        """The body of a successful POST; takes and raises as `stream`."""
        return await self._whole("POST", url, deadline, _as_json(body), give_up or deadline)

    async def get(self, url: str, deadline: Deadline) -> bytes:
        """The body of a successful GET; raises as `stream`."""
        return await self._whole("GET", url, deadline, b"", deadline)

    async def _whole(self, method: str, url: str, deadline: Deadline, body: bytes, patience: Deadline) -> bytes:
        with translated(patience):
            async with asyncio.timeout(patience.remaining()):
                answer = await self._answer(method, url, deadline, body)
                try:
                    return await _read(answer)
                finally:
                    answer.close()

    async def _answer(self, method: str, url: str, deadline: Deadline, body: bytes) -> Answer:
        """An answer that says success; raises what any other one means."""
        headers = {**_ALWAYS, **self._authorization, **deadline.header(), **_request_id(), **trace_headers()}
        if body:
            headers["content-type"] = "application/json"
        name = self.host_names.get(origin_of(url)) if self.host_names else None
        if name is not None:
            headers["host"] = name
        answer = await self.transport.send(method, url, headers, body, server_name=host_of(name) if name else None)
        if _FIRST_SUCCESS <= answer.status < _FIRST_REDIRECT:
            return answer
        try:
            raise _refusal(answer, url, await _read(answer))
        finally:
            answer.close()


def _as_json(body: dict[str, Any]) -> bytes:
    return to_json(body)  # a prompt is hundreds of whole numbers; nothing in a body is NaN, which it would let pass


def _request_id() -> dict[str, str]:
    request_id = current_request_id()
    return {REQUEST_ID_HEADER: request_id} if request_id else {}


class _RefusalInfo(BaseModel):
    message: str
    param: str | None = None
    code: str | int | None = None


class _Refusal(BaseModel):
    error: _RefusalInfo


@contextlib.contextmanager
def translated(deadline: Deadline) -> Iterator[None]:
    """Turn what the network raises into `CallFailed`; the message carries no body and no address."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:  # or not who its certificate says
        raise CallFailed(CallResult.UNREACHABLE, "cannot be reached") from error
    except TimeoutError as error:
        what = "did not answer before the deadline" if deadline.expired() else "did not answer in time"
        raise CallFailed(CallResult.TIMEOUT, what) from error
    except aiohttp.ClientError as error:
        raise CallFailed(CallResult.BROKEN, f"cut the connection ({type(error).__name__})") from error


async def _read(answer: Answer) -> bytes:
    body = bytearray()
    async for piece in answer.pieces():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise CallFailed(CallResult.BROKEN, f"answered with more than {_MAX_BODY_BYTES} bytes")
    return bytes(body)


def _refusal(answer: Answer, url: str, body: bytes) -> Exception:
    """What a status other than success means to us."""
    status = answer.status
    if status in _CALLERS_FAULT:
        return _invalid(body)
    if status in _NOT_SERVED and _names_the_model(body):
        return CallFailed(CallResult.NOT_SERVED, "does not serve the leased version")
    if status in _OVERLOADED:
        return CallFailed(CallResult.OVERLOADED, "is overloaded", retry_after=_retry_after(answer))
    if status == _LATE:
        return CallFailed(CallResult.LATE, "did not have an answer in its own time", retry_after=_retry_after(answer))
    if status in (401, 403):
        _log.error("a replica refuses our internal key", extra={"status": status, "url": url})
    return CallFailed(CallResult.BROKEN, f"answered with status {status}")


def _names_the_model(body: bytes) -> bool:
    """Whether a 404 or 409 is about the version that was asked for, as vLLM and the reward service say it."""
    try:
        info = _Refusal.model_validate_json(body).error
    except ValidationError:
        return False
    return info.param == "model" or info.code == ErrorCode.MODEL_NOT_SERVED


def _invalid(body: bytes) -> InvalidRequest:
    """The other side's 400 in our words; its code is kept where we know it (vLLM's is a number, and unknown)."""
    try:
        info = _Refusal.model_validate_json(body).error
    except ValidationError:
        return InvalidRequest("the request was refused")
    known = {code.value: code for code in ErrorCode}
    return InvalidRequest(info.message[:500], param=info.param, code=known.get(str(info.code)))


def _retry_after(answer: Answer) -> float | None:
    try:
        seconds = float(answer.header("retry-after") or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 3600 else None
