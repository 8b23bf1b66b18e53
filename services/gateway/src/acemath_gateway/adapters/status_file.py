"""`LeaseStore` as a status file in the registry: what agents and reward services read before they stop a version.

`status/gateway/<instance>.json`: `{"generation": 3, "leases": {"r-…": 2}, "at": <Unix seconds>, "stopped": false}`.
A gateway that ends in order writes `"stopped": true` last; without that, an old record means *unknown*, never zero.
"""

from __future__ import annotations

import asyncio
import logging
import time

from acemath_core.errors import ServiceError
from acemath_registry import Registry

_log = logging.getLogger(__name__)


class StatusFileLeases:
    """Writes this gateway's leases into the registry; a read-only mount is said once and does no harm.

    Args:
        registry: where to write.
        instance: name of this gateway.
    """

    def __init__(self, registry: Registry, *, instance: str) -> None:
        self._registry, self._instance = registry, instance
        self._failing = False
        self._last = 0, dict[str, int]()

    async def assert_leases(self, generation: int, counts: dict[str, int]) -> None:
        """See `LeaseStore.assert_leases`."""
        self._last = generation, counts
        await self._write(generation, counts, stopped=False)

    async def withdraw(self) -> None:
        """Say that this gateway has ended: nothing need wait for it any more."""
        await self._write(*self._last, stopped=True)

    async def _write(self, generation: int, counts: dict[str, int], *, stopped: bool) -> None:
        document = {"generation": generation, "leases": counts, "at": time.time(), "stopped": stopped}
        try:
            await asyncio.to_thread(self._registry.write_status, "gateway", self._instance, document)
        except ServiceError as error:
            if not self._failing:
                _log.warning("leases cannot be written to the registry: %s", error.message)
            self._failing = True
        else:
            self._failing = False
