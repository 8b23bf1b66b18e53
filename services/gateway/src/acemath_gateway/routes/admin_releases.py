"""`POST /admin/v1/releases/{channel}` points a channel at a release; `…/rollback` at the one before."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Request

from acemath_core.admin import ChannelInfo, PromoteRequest, RollbackRequest
from acemath_gateway.routes.admin_parts import Administrator, admin_parts, admin_schema
from acemath_gateway.routes.body import read_fields, validated
from acemath_registry import Channel
from acemath_web.queries import StrictQueryRoute

_log = logging.getLogger(__name__)
_ROLLBACK_FIELDS = frozenset(field.alias or name for name, field in RollbackRequest.model_fields.items())
_ABSENT = "there is no such channel (`expected_generation` 0 begins one), or no such release"
ChannelName = Annotated[
    str, Path(max_length=96, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*$", description="the channel")
]


def admin_releases_router() -> APIRouter:
    """`/admin/v1/releases/{channel}`."""
    router = APIRouter(prefix="/admin/v1/releases", tags=["admin"], route_class=StrictQueryRoute)

    @router.post(
        "/{channel}", summary="Point a channel at a release", openapi_extra=admin_schema(PromoteRequest, _ABSENT)
    )
    async def promote(request: Request, channel: ChannelName, caller: Administrator) -> ChannelInfo:
        wanted = validated(PromoteRequest, await read_fields(request, PromoteRequest.model_fields))
        move = await admin_parts(request).channels.promote(
            channel,
            wanted.release,
            expected_generation=wanted.expected_generation,
            by=_by(caller.id),
            again=wanted.again,
        )
        return _told(channel, move.after, caller.id, changed=move.changed)

    @router.post(
        "/{channel}/rollback",
        summary="Point a channel at the release that was served before",
        openapi_extra=admin_schema(RollbackRequest, "there is no such channel"),
    )
    async def rollback(request: Request, channel: ChannelName, caller: Administrator) -> ChannelInfo:
        wanted = validated(RollbackRequest, await read_fields(request, _ROLLBACK_FIELDS))
        found = await admin_parts(request).channels.rollback(
            channel,
            expected_generation=wanted.expected_generation,
            by=_by(caller.id),
            expected_release=wanted.from_release,
        )
        return _told(channel, found, caller.id, changed=True)

    return router


def _by(caller: str) -> str:
    return f"admin API, {caller}"


def _told(name: str, channel: Channel, caller: str, *, changed: bool) -> ChannelInfo:
    if changed:
        _log.info(
            "a channel was pointed at a release",
            extra={"channel": name, "release": channel.release, "generation": channel.generation, "by": caller},
        )
    return ChannelInfo(
        channel=name,
        release=channel.release,
        generation=channel.generation,
        previous=channel.previous,
        by=channel.by,
        at=channel.at,
        changed=changed,
    )
