"""How many jobs hold which release, and telling those who wait for that to become none.

A count is published on change and as a heartbeat. All counts are taken at once, on the event loop, together with the
generation that new jobs use; since new leases go to the newest release only, what is said of an older one can only be
too high. A release that nobody holds any more is said to be at 0, not left out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.ports import LeaseStore, ReleaseTarget

_COALESCE_SECONDS = 1.0
_REMEMBERED = 8


class LeaseLedger:
    """Counts leases and publishes the counts.

    Args:
        stores: where they are published.
        metrics: where they are shown.
        current: the release that new jobs use now.
        canary: id of the release that a share of them uses, None for none.
        viewed: Unix time when the replicas began to be asked for what new leases are given by.
        heartbeat_seconds: longest time between two publications.
    """

    def __init__(
        self,
        *,
        stores: Sequence[LeaseStore],
        metrics: GatewayMetrics,
        current: Callable[[], ReleaseTarget | None],
        canary: Callable[[], str | None],
        viewed: Callable[[], float],
        heartbeat_seconds: float,
    ) -> None:
        self._stores = tuple(stores)
        self._shown = {age: metrics.leases.labels(age) for age in ("current", "canary", "old")}
        self._current, self._canary, self._viewed = current, canary, viewed
        self._heartbeat_seconds = heartbeat_seconds
        self._counts: dict[str, int] = {}
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def holding(self, release: str) -> Iterator[None]:
        """Count one lease for the length of the block."""
        self._add(release, 1)
        try:
            yield
        finally:
            self._add(release, -1)

    def counts(self) -> dict[str, int]:
        """Leases by release; the current one and the last few are there even at 0."""
        current = self._current()
        return ({current.release: 0} if current else {}) | self._counts

    def note_change(self) -> None:
        """Count anew which leases are old, and publish soon: the current release changed."""
        self._show()

    async def publish(self) -> None:
        """Tell every store."""
        current = self._current()
        generation, release = (current.generation, current.release) if current else (0, None)
        told = generation, release, self.counts(), self._viewed()
        await asyncio.gather(*(store.assert_leases(*told) for store in self._stores))

    async def publish_forever(self) -> None:
        """Publish on change and as a heartbeat until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._changed.wait()
            self._changed.clear()
            await self.publish()
            await asyncio.sleep(_COALESCE_SECONDS)  # a burst of short jobs is one publication

    def _add(self, release: str, change: int) -> None:
        self._counts[release] = self._counts.pop(release, 0) + change  # the last one used is the last one listed
        for old in [name for name, count in self._counts.items() if not count][:-_REMEMBERED]:
            del self._counts[old]
        self._show()

    def _show(self) -> None:
        current = self._current()
        held = self._counts.get(current.release, 0) if current else 0
        shared = self._counts.get(self._canary() or "", 0)
        self._shown["current"].set(held)
        self._shown["canary"].set(shared)
        self._shown["old"].set(sum(self._counts.values()) - held - shared)
        self._changed.set()
