"""`LeaseStore` as a status file in the registry: what agents and reward services read before they stop a version.

`status/gateway/<instance>.json`:
`{"channel": "default", "generation": 3, "release": "r-…", "leases": {"r-…": 2}, "at": <Unix seconds>}`;
generation and release are what new jobs use, 0 and null before the first. `"viewed": <Unix seconds>` is when the
replicas began to be asked for what new leases are given by. An old record means *unknown*, never zero;
so a gateway that ends in order takes its record away, and nobody waits for it any more. What it served last stays
written down in `status/served/<channel>.json`, for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from acemath_core.errors import ServiceError
from acemath_registry import NotFound, Registry, Served

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 5.0  # for one change; a thread cannot be stopped
_SILENT = "the registry does not answer; check its mount, or the object store"


class StatusFileLeases:
    """Writes this gateway's leases into the registry.

    Where it cannot, requests are answered as ever. Replicas stop no old version while its last record is old; of a
    gateway that never wrote one they know nothing, and go by the others.

    Args:
        registry: where to write.
        instance: name of this gateway.
        channel: the one that it follows.
        on_failure: told of each record that could not be written, or taken away.
    """

    def __init__(
        self, registry: Registry, *, instance: str, channel: str, on_failure: Callable[[], object] = lambda: None
    ) -> None:
        self._registry, self._instance, self._channel = registry, instance, channel
        self._on_failure = on_failure
        self._noted: Served | None = None  # what this gateway said to be served
        self._changing: asyncio.Task[None] | None = None
        self._failing = False

    async def assert_leases(
        self, generation: int, release: str | None, counts: dict[str, int], viewed: float | None = None
    ) -> None:
        """See `LeaseStore.assert_leases`."""
        document = {"channel": self._channel, "generation": generation, "release": release, "leases": counts}
        document |= {"at": time.time()} if viewed is None else {"at": time.time(), "viewed": viewed}
        served = None if release is None else Served(release, generation)
        await self._try(lambda: self._write(document, served))

    def _write(self, document: dict[str, object], served: Served | None) -> None:
        self._registry.write_status("gateway", self._instance, document)
        if served is not None and served != self._noted:
            self._registry.note_served(self._channel, served, by=self._instance)
            self._noted = served

    async def withdraw(self) -> None:
        """Take the record away, after a write that is still under way: this gateway has ended and holds nothing."""
        if not await self._try(self._remove):
            _log.warning("the lease record may stay; if it does: acemath registry forget-gateway %s", self._instance)

    def _remove(self) -> None:
        with suppress(NotFound):  # it never wrote one
            self._registry.remove_status("gateway", self._instance)

    async def _try(self, change: Callable[[], None]) -> bool:
        problem = await self._problem(change)
        if problem is not None:
            self._on_failure()
        if problem is not None and not self._failing:
            said = "replicas keep what its last record names, and know nothing of a gateway that never wrote one"
            _log.warning("leases cannot be written to the registry: %s; %s", said, problem)
        self._failing = problem is not None
        return problem is None

    async def _problem(self, change: Callable[[], None]) -> str | None:
        """Why a change failed; it begins when the one before it has ended, or else the older could land last."""
        if not await self._ended():
            return _SILENT
        self._changing = asyncio.create_task(asyncio.to_thread(change), name="write leases")
        if not await self._ended():
            return _SILENT
        try:
            self._changing.result()
        except (ServiceError, OSError) as error:
            return str(error)
        return None

    async def _ended(self) -> bool:
        """Whether the last change ends in time; who is cancelled meanwhile leaves it to go on."""
        if self._changing is None:
            return True
        done, _ = await asyncio.wait({self._changing}, timeout=_PATIENCE_SECONDS)
        for ended in done:
            if not ended.cancelled():
                ended.exception()  # one that nobody waited for has nobody to tell
        return bool(done)
