"""`LeaseStore` as a status file in the registry: what agents and reward services read before they stop a version.

`status/gateway/<instance>.json`: `{"generation": 3, "release": "r-…", "leases": {"r-…": 2}, "at": <Unix seconds>}`;
generation and release are what new jobs use, 0 and null before the first. An old record means *unknown*, never zero;
so a gateway that ends in order takes its record away, and nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from acemath_core.errors import ServiceError
from acemath_registry import NotFound, Registry

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

    async def assert_leases(self, generation: int, release: str | None, counts: dict[str, int]) -> None:
        """See `LeaseStore.assert_leases`."""
        document = {"generation": generation, "release": release, "leases": counts, "at": time.time()}
        await self._try(lambda: self._registry.write_status("gateway", self._instance, document))

    async def withdraw(self) -> None:
        """Take the record away: this gateway has ended and holds nothing."""
        await self._try(self._remove)

    def _remove(self) -> None:
        with suppress(NotFound):  # it never wrote one
            self._registry.remove_status("gateway", self._instance)

    async def _try(self, change: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(change)
        except (ServiceError, OSError) as error:
            if not self._failing:
                _log.warning("leases cannot be written to the registry: %s", error)
            self._failing = True
        else:
            self._failing = False
