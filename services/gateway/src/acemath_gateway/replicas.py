"""What the configured policy agents and reward services say they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from acemath_core.errors import ServiceError
from acemath_core.wire import Slot, SlotState

_log = logging.getLogger(__name__)

ADOPTABLE = frozenset({SlotState.READY, SlotState.ACTIVE})
"""States in which a version may become the one that new jobs use."""

SERVING = ADOPTABLE | {SlotState.DRAINING}
"""States in which a version still answers jobs that are on it: a replica drains what others may not have replaced."""

_MISSES_UNTIL_DOWN = 2


class SlotsPort(Protocol):
    """Asks replicas about themselves."""

    async def slots(self, url: str) -> tuple[Slot, ...]:
        """What the agent or service at `url` serves, within a few seconds.

        Raises:
            Unavailable: it gives no answer, or none that can be understood.
        """
        ...

    async def context_length(self, endpoint: str, version: str) -> int:
        """Tokens of prompt and completion that the vLLM server at `endpoint` takes.

        Raises:
            Unavailable: it gives no answer, or does not serve `version`.
        """
        ...


class Addresses(Protocol):
    """Finds the replicas behind what was configured."""

    async def of(self, urls: Sequence[str]) -> tuple[str, ...]:
        """One URL for each replica, now; within a second or two, and never raising."""
        ...


class ReplicaWatch:
    """The last known slots of the replicas of one kind.

    Args:
        port: asks them.
        urls: every configured replica, or a name for several of them.
        addresses: finds the replicas behind names; None takes each URL for one replica.

    Attributes:
        urls: the replicas as of the last refresh.
    """

    def __init__(self, port: SlotsPort, urls: Sequence[str], addresses: Addresses | None = None) -> None:
        self._port, self._configured, self._addresses = port, tuple(urls), addresses
        self.urls = self._configured
        self._slots: dict[str, tuple[Slot, ...]] = {}
        self._misses: dict[str, int] = dict.fromkeys(self.urls, _MISSES_UNTIL_DOWN)

    async def refresh(self) -> None:
        """Find the replicas, and ask every one at once."""
        if self._addresses is not None:
            self.urls = await self._addresses.of(self._configured)
            self._misses = {url: self._misses.get(url, _MISSES_UNTIL_DOWN) for url in self.urls}
            self._slots = {url: slots for url, slots in self._slots.items() if url in self._misses}
        await asyncio.gather(*(self._ask(url) for url in self.urls))

    def answering(self, url: str) -> bool:
        """Whether the replica answered when it was last asked."""
        return self._misses.get(url) == 0

    def down(self, url: str) -> bool:
        """Whether the replica has been silent for more than a moment."""
        return self._misses.get(url, _MISSES_UNTIL_DOWN) >= _MISSES_UNTIL_DOWN

    def fresh(self) -> bool:
        """Whether everything that is shown was said at the last refresh: nothing of a replica that missed just one."""
        return all(self.answering(url) or self.down(url) for url in self.urls)

    def slot(self, url: str, version: str) -> Slot | None:
        """The replica's slot of a version as last seen; None when it is down or has none.

        Of several the last one counts: a version that is brought up again stands behind what it was before.
        """
        if self.down(url):
            return None
        return next((slot for slot in reversed(self._slots.get(url, ())) if slot.version == version), None)

    def gave_up(self, version: str, newest: str) -> bool:
        """Whether a replica drains a version without having the newest: it gives it up, and may stop it soon."""
        return any(
            slot is not None and slot.state is SlotState.DRAINING and not self._has(url, newest)
            for url in self.urls
            for slot in (self.slot(url, version),)
        )

    def _has(self, url: str, version: str) -> bool:
        slot = self.slot(url, version)
        return slot is not None and slot.state not in (SlotState.RETIRED, SlotState.REJECTED)

    def describe(self) -> dict[str, object]:
        """For people: each replica's slots, or that it is down."""
        return {
            url: "no answer" if self.down(url) else {s.version: s.state.value for s in self._slots.get(url, ())}
            for url in self.urls
        }

    async def _ask(self, url: str) -> None:
        try:
            self._slots[url] = await self._port.slots(url)
        except ServiceError as error:
            self._misses[url] += 1
            if self._misses[url] == _MISSES_UNTIL_DOWN:
                _log.warning("a replica does not answer: %s", error.message, extra={"url": url})
        else:
            self._misses[url] = 0
