"""Whether a replica refused a version of a release: no gateway will use it, so the rest of it is of no use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_registry.following.channel import Desired
from acemath_registry.following.slow import SlowCalls
from acemath_registry.manifest import ModelKind
from acemath_registry.refs import ModelRef
from acemath_registry.registry import Registry

_MAX_AGE_SECONDS = 30.0  # a replica writes its record every 10 s


class Refusals(Protocol):
    """What replicas say of the versions of a release."""

    async def of(self, desired: Desired) -> str | None:
        """Which replica refused one of them in this generation, in words; None while none is known to have."""
        ...


class StatusRefusals:
    """Reads `status/<policy or reward>/<instance>.json`, what every replica writes of itself.

    Args:
        registry: where the records and the releases are.
        channel: the one that this replica follows; generations of others are others.
        now: Unix time.
    """

    def __init__(self, registry: Registry, channel: str, now: Callable[[], float] = time.time) -> None:
        self._registry, self._channel, self._now, self._calls = registry, channel, now, SlowCalls()

    async def of(self, desired: Desired) -> str | None:
        """See `Refusals.of`."""
        try:
            return await self._calls.result(lambda: self._of(desired))
        except ServiceError:
            return None

    def _of(self, desired: Desired) -> str | None:
        release = self._registry.release(desired.release)
        for kind in (ModelKind.POLICY, ModelKind.REWARD):
            version = release.member(kind).ref
            for instance, record in self._registry.statuses(kind.value, self._channel).items():
                if self._speaks_of(desired, record) and _rejects(record, version):
                    return f"{kind.value}/{instance} refused {version} of {desired.release}"
        return None

    def _speaks_of(self, desired: Desired, record: dict[str, Any]) -> bool:
        """Whether it is fresh, of this generation, and its named version has had its turn."""
        at, current = record.get("at"), record.get("generation") == desired.generation
        fresh = isinstance(at, int | float) and self._now() - at <= _MAX_AGE_SECONDS
        return fresh and current and record.get("waiting") is None


def _rejects(record: dict[str, Any], version: ModelRef) -> bool:
    """By the last slot of the version: it stands behind what the version was before."""
    slots = record.get("slots")
    found = [slot for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else []
    states = [slot.get("state") for slot in found if slot.get("version") == str(version)]
    return bool(states) and states[-1] == SlotState.REJECTED.value
