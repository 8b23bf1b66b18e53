"""`GET /v1/models`: the one model name. `GET /v1/releases`: which versions stand behind it now."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from acemath_core.errors import ErrorCode, NotFound
from acemath_gateway.canary import CanaryView
from acemath_gateway.chat_wire import MODEL
from acemath_gateway.ports import ReleaseTarget
from acemath_gateway.routes.parts import parts_of
from acemath_gateway.routes.schema import failures
from acemath_web.queries import StrictQueryRoute

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: failures("there is no such model")}


def models_router() -> APIRouter:
    """`/v1/models`, `/v1/models/{id}` and `/v1/releases`."""
    router, since = APIRouter(tags=["models"], route_class=StrictQueryRoute), int(time.time())

    @router.get("/v1/models", summary="The models that can be asked")
    async def models(request: Request) -> dict[str, object]:
        return {"object": "list", "data": [_model(request, since)]}

    @router.get("/v1/models/{model}", summary="One model", responses=_NOT_FOUND)
    async def model(model: str, request: Request) -> dict[str, object]:
        if model != MODEL:
            raise NotFound(
                f"the model {model[:100]!r} does not exist here; use {MODEL!r}",
                param="model",
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        return _model(request, since)

    @router.get("/v1/releases", summary="The release that new requests get, and one that a share of them gets")
    async def releases(request: Request) -> dict[str, object]:
        parts = parts_of(request)
        target, canary = parts.serving(), parts.canary()
        served = [] if target is None else [_served(target)]
        return {"object": "list", "data": served if canary is None else [*served, _shared(canary)]}

    return router


def _served(target: ReleaseTarget) -> dict[str, object]:
    return {
        "object": "release",
        "id": target.release,
        "generation": target.generation,
        "models": {"policy": target.policy, "reward": target.reward},
    }


def _shared(canary: CanaryView) -> dict[str, object]:
    return {
        "object": "release",
        "id": canary.release,
        "models": {"policy": canary.policy, "reward": canary.reward},
        "canary": {"share": canary.share, "state": canary.state.value, "reason": canary.reason},
    }


def _model(request: Request, since: int) -> dict[str, object]:
    target = parts_of(request).serving()
    release = None if target is None else target.release
    return {"id": MODEL, "object": "model", "created": since, "owned_by": "acemath", "release": release}
