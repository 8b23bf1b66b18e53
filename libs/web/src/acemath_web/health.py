"""`/livez`: the process answers. `/readyz`: a cached verdict on whether it can do its work; never computed on call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from acemath_web.auth import is_stranger

_YES = frozenset({"", "1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class Readiness:
    """A verdict and what it rests on.

    Attributes:
        ready: whether traffic should be sent here.
        reason: why not, in a sentence; empty when ready.
        details: shown by `/readyz?verbose` to callers with a key; never secrets.
    """

    ready: bool
    reason: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


def health_router(readiness: Callable[[], Readiness]) -> APIRouter:
    """`/livez`, `/readyz` (with `?verbose`) and `/health` (an alias of `/readyz`).

    Args:
        readiness: returns the cached verdict at once; it is called on the event loop.
    """
    router = APIRouter(tags=["health"])

    @router.get("/livez", response_class=PlainTextResponse, summary="The process answers")
    async def livez() -> str:
        return "ok"

    @router.get("/readyz", summary="Whether traffic should be sent here")
    @router.get("/health", summary="Alias of /readyz")
    async def readyz(request: Request, verbose: str | None = None) -> Response:
        verdict = readiness()
        body: dict[str, object] = {"ready": verdict.ready, "reason": verdict.reason}
        if verbose is not None and verbose.lower() in _YES and not is_stranger(request.scope):
            body["details"] = dict(verdict.details)
        return JSONResponse(body, status_code=200 if verdict.ready else 503)

    return router
