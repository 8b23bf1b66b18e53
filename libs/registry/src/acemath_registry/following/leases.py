"""Who still uses an old version. A missing or old record means *unknown*, never zero."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

from acemath_core.errors import Conflict, InvalidRequest, ServiceError
from acemath_registry.errors import VerificationError
from acemath_registry.registry import Registry

_log = logging.getLogger(__name__)
_FORGET = "; if it has ended: acemath registry forget-gateway"


class Leases(Protocol):
    """What every gateway says of the releases it still works with."""

    async def holder(self, generation: int, releases: Collection[str]) -> str | None:
        """Why a version may still be in use, in words; None once every gateway has let go of it.

        Args:
            generation: the last channel generation that named the version.
            releases: ids of the releases that named it.
        """
        ...


class StatusLeases:
    """Reads `status/gateway/<instance>.json` in the registry.

    A record is `{"generation": g, "leases": {release id: count}, "at": unix seconds}`: g is the channel generation to
    which that gateway sends new requests, and `leases` everything it holds. A gateway that ends in order removes its
    own; for one that was killed a person does (`forget_gateway`).

    Args:
        registry: where the records lie.
        max_age_seconds: an older record is unknown: its gateway may be cut off and still at work.
        now: Unix time.
    """

    def __init__(self, registry: Registry, max_age_seconds: float, now: Callable[[], float] = time.time) -> None:
        self._registry, self._max_age, self._now = registry, max_age_seconds, now

    async def holder(self, generation: int, releases: Collection[str]) -> str | None:
        """See `Leases.holder`."""
        try:
            records = await asyncio.to_thread(self._registry.statuses, "gateway")
        except ServiceError as error:
            return f"the gateways' records cannot be read: {error.message}"
        if not records:
            return "no gateway has written a record"
        held = (self._holds(name, record, generation, releases) for name, record in records.items())
        return next((reason for reason in held if reason is not None), None)

    def _holds(self, name: str, record: dict[str, Any], generation: int, releases: Collection[str]) -> str | None:
        routed, leases, at = record.get("generation"), record.get("leases"), record.get("at")
        if not isinstance(routed, int) or not isinstance(leases, dict) or not isinstance(at, int | float):
            return f"gateway {name}: its record has no generation, leases and at"
        if self._now() - at > self._max_age:
            return f"gateway {name}: its record is {self._now() - at:.0f} s old{_FORGET} {name}"
        if routed <= generation:
            return f"gateway {name}: it still routes by generation {routed}"
        if any(leases.get(release) for release in releases):
            return f"gateway {name}: it holds leases"
        return None


def forget_gateway(
    registry: Registry, instance: str, *, by: str, max_age_seconds: float, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Take away the record of a gateway that ended without doing so itself; returns the record.

    An old record means *unknown*, never zero: the gateway may be cut off and still at work, and only a person can know
    that it is not. Who says so is written down first, in `status/forgotten-gateway/<instance>.json`.

    Args:
        registry: where the record lies.
        instance: name of the gateway.
        by: who says that it has ended.
        max_age_seconds: a younger record is refused: its gateway is alive.
        now: Unix time.

    Raises:
        InvalidRequest: a name that can not be one, or an empty `by`.
        NotFound: there is no such record.
        Conflict: the record is fresh.
        StorageError: it can not be written or removed.
    """
    if not by.strip():
        raise InvalidRequest("by must say who forgets the gateway", param="by")
    record = _record_or_damaged(registry, instance)
    at, current = record.get("at"), now()
    if isinstance(at, int | float) and current - at <= max_age_seconds:
        raise Conflict(
            f"gateway {instance} wrote its record {max(0.0, current - at):.0f} s ago: it is alive; stop it, or wait "
            f"until the record is {max_age_seconds:g} s old",
            param="instance",
            should_retry=False,
        )
    registry.write_status("forgotten-gateway", instance, {"record": record, "by": by, "at": current})
    registry.remove_status("gateway", instance)
    _log.warning("gateway %s is forgotten", instance, extra={"by": by, "record": record})
    return record


def _record_or_damaged(registry: Registry, instance: str) -> dict[str, Any]:
    try:
        return registry.read_status("gateway", instance)
    except VerificationError as error:
        return {"damaged": error.message}  # it holds every version as long as it lies there
