"""Every error leaves as `{"error": {message, type, param, code}}` with the status of core's one table."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acemath_core.errors import ClientGone, ErrorCode, InvalidRequest, ServiceError, status_of, type_of
from acemath_core.wire import ErrorBody, ErrorInfo
from acemath_web.matching import routes_at

_log = logging.getLogger(__name__)
_BY_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.REQUEST_TOO_LARGE,
}
_MAX_PARAM_CHARS = 128
_MAX_MESSAGE_CHARS = 512


def error_body(error: ServiceError) -> ErrorBody:
    """The body of an error."""
    return ErrorBody(
        error=ErrorInfo(message=error.message, type=type_of(error.code), param=error.param, code=error.code.value)
    )


def error_response(error: ServiceError) -> Response:
    """The whole response of an error: body, status, `Retry-After`, `x-should-retry` and the reason code."""
    headers = {"x-acemath-error-code": error.code.value}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return JSONResponse(error_body(error).model_dump(), status_code=status_of(error.code), headers=headers)


def from_validation(errors: Sequence[Any]) -> InvalidRequest:
    """The 400 of a body that does not fit its schema: names the field, never repeats the value."""
    first = errors[0]
    named = [part for part in map(str, first["loc"]) if part != "body" and not part.startswith("(")]
    param = _short(".".join(named), _MAX_PARAM_CHARS) or None
    if first["type"] == "extra_forbidden":
        return InvalidRequest(
            f"unknown or unsupported field {param!r}; remove it",
            param=param,
            code=ErrorCode.UNSUPPORTED_PARAMETER,
        )
    if first["type"] == "json_invalid":
        return InvalidRequest("the body is not valid JSON; send UTF-8 JSON with content-type application/json")
    others = f" (and {len(errors) - 1} more problems)" if len(errors) > 1 else ""
    return InvalidRequest(f"{param or 'body'}: {_plain(first['msg'])}{others}", param=param)


def install_error_handlers(app: FastAPI) -> None:
    """Make every way of failing that is foreseen answer in the one shape; `LastResortMiddleware` answers the rest."""

    async def on_service_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        if error.status == 500:
            _log.error("internal error", exc_info=error)
        return error_response(error)

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(from_validation(error.errors()))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _BY_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST)
        response = error_response(ServiceError(_of_http(request, error), code=code))
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_methods_at(request))
        return response

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


class LastResortMiddleware:
    """Answers 500 to what no handler took; it stands inside those that give the request its id and count it.

    A handler for `Exception` would not do: Starlette runs it outside of every other middleware, where the answer gets
    neither id nor count. Once the answer has begun only breaking it off tells the caller, so the error goes on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the wrapped application; answer for it when it raises before its answer began."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            failure = _unforeseen(error)
            if started:
                raise
            await error_response(failure)(scope, receive, noted)


def _of_http(request: Request, error: HTTPException) -> str:
    """What the framework says in a word or two, with what and what to do."""
    path = _short(request.scope["path"], _MAX_PARAM_CHARS)
    if error.status_code == 404:
        return f"there is nothing at {path}; GET /openapi.json lists the paths there are"
    if error.status_code == 405:
        return f"{_short(request.method, 16)} is no method of {path}; use {' or '.join(_methods_at(request))}"
    return str(error.detail)


def _methods_at(request: Request) -> list[str]:
    """Every method of the path, as a 405 must say (RFC 9110, section 15.5.6); the framework names one route's only."""
    methods = (getattr(route, "methods", None) or () for route in routes_at(request.scope))
    return sorted(frozenset().union(*methods))


def _unforeseen(error: Exception) -> ServiceError:
    if isinstance(error, ClientDisconnect):
        return ClientGone("the caller closed the connection")
    _log.error("unhandled %s", type(error).__name__, exc_info=error)
    return ServiceError("an internal error; quote the x-request-id of this response when you report it")


def _plain(message: str) -> str:
    return _short(message.removeprefix("Value error, "), _MAX_MESSAGE_CHARS)


def _short(text: str, limit: int) -> str:
    """At most `limit` printable characters; a caller chooses the names of its fields, and they go into logs too."""
    cut = "".join(char if char.isprintable() else "�" for char in text[:limit])
    return cut if len(text) <= limit else f"{cut[:-1]}…"
