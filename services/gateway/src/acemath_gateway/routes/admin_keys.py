"""`POST | GET | PATCH | DELETE /admin/v1/keys`: the keys of callers. A key itself is told once, to who made it."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from acemath_core.admin import KEY_ID_PATTERN, KeyChange, KeyInfo, KeyList, KeyRequest, NewKey
from acemath_core.errors import NotFound
from acemath_gateway.keys.records import draw, handed_out
from acemath_gateway.routes.admin_parts import Administrator, admin_parts, admin_schema
from acemath_gateway.routes.body import read_fields, validated
from acemath_web.queries import StrictQueryRoute

_log = logging.getLogger(__name__)
KeyId = Annotated[str, Path(pattern=KEY_ID_PATTERN)]


def admin_keys_router() -> APIRouter:
    """`/admin/v1/keys`."""
    router = APIRouter(prefix="/admin/v1/keys", tags=["admin"], route_class=StrictQueryRoute)

    @router.post("", status_code=201, summary="Make a key", openapi_extra=admin_schema(KeyRequest))
    async def make(request: Request, response: Response, caller: Administrator) -> NewKey:
        wanted = validated(KeyRequest, await read_fields(request, KeyRequest.model_fields))
        key, record = draw(wanted, by=caller.id)
        await admin_parts(request).keys.create(record)
        _log.info("an API key was made", extra={"key_id": record.id, "scopes": list(record.scopes), "by": caller.id})
        response.headers["cache-control"] = "no-store"
        return handed_out(key, record)

    @router.get("", summary="The keys that there are", openapi_extra=admin_schema())
    async def every(request: Request, caller: Administrator) -> KeyList:
        records = await admin_parts(request).keys.every()
        newest = sorted(records, key=lambda record: (record.created_at, record.id), reverse=True)
        return KeyList(data=tuple(record.info() for record in newest))

    @router.patch("/{key_id}", summary="Change a key's name or quotas", openapi_extra=admin_schema(KeyChange))
    async def change(request: Request, key_id: KeyId, caller: Administrator) -> KeyInfo:
        wanted = validated(KeyChange, await read_fields(request, KeyChange.model_fields))
        parts = admin_parts(request)
        record = await parts.keys.change(key_id, wanted)
        parts.book.forget(key_id)
        if record is None:
            raise _none(key_id)
        _log.info("an API key was changed", extra={"key_id": key_id, "by": caller.id})
        return record.info()

    @router.delete("/{key_id}", summary="Revoke a key for ever", openapi_extra=admin_schema())
    async def revoke(request: Request, key_id: KeyId, caller: Administrator) -> KeyInfo:
        parts = admin_parts(request)
        record = await parts.keys.revoke(key_id)
        parts.book.forget(key_id)
        if record is None:
            raise _none(key_id)
        _log.info("an API key was revoked", extra={"key_id": key_id, "by": caller.id})
        return record.info()

    return router


def _none(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id}, or it was revoked; GET /admin/v1/keys lists them", param="key_id")
