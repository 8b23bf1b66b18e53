"""`GET /v1/slots` and `GET /v1/targets`."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import BaseModel

from acemath_core.wire import Slot
from acemath_web.queries import StrictQueryRoute

TARGETS_PATH = "/v1/targets"


class TargetGroup(BaseModel):
    """One group in Prometheus' http_sd form (https://prometheus.io/docs/prometheus/latest/http_sd/)."""

    targets: list[str]
    labels: dict[str, str]


def policy_router(slots: Callable[[], list[Slot]]) -> APIRouter:
    """The agent's own routes.

    Args:
        slots: gives every version as it is now, at once.
    """
    router = APIRouter(tags=["policy"], route_class=StrictQueryRoute)

    @router.get("/v1/slots", summary="Every version and where it stands")
    async def get_slots() -> list[Slot]:
        return slots()

    @router.get(TARGETS_PATH, summary="The vLLM servers that can be scraped")
    async def get_targets() -> list[TargetGroup]:
        return [
            TargetGroup(targets=[urlsplit(slot.endpoint).netloc], labels={"version": slot.version})
            for slot in slots()
            if slot.endpoint is not None
        ]

    return router
