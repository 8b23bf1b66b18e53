"""One cell after the other: the stack at rest, a swap with a kill in it, the stack at rest again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from acemath_registry import Registry
from bench.swapkills.asking import Clients, account
from bench.swapkills.matrix import Cell, Victim
from bench.swapkills.publishing import version
from bench.swapkills.results import Hit, Row
from bench.swapkills.stack import Processes, files_left, left_over
from bench.swapkills.swap import NotSettled, Swap
from bench.swapkills.view import Looker, Pair
from bench.swaps.publishing import Prepared

ATTEMPTS = 3
QUIET_SECONDS = 90.0
"""So long gauges and processes may take to come back: a dead gateway's places in the shared limit take 15 s."""


@dataclass(slots=True)
class Bench:
    """All that a cell needs.

    Attributes:
        prepare: writes the next release's checkpoints below an empty folder.
        current: the release that is served.
        patience: seconds that a swap may take.
        scratch: where checkpoints are written.
        count: of clients.
    """

    registry: Registry
    looker: Looker
    processes: Processes
    clients: Clients
    prepare: Callable[[Path], Prepared]
    current: Pair
    patience: float
    scratch: Path
    count: int

    async def run(self, cell: Cell) -> Row | None:
        """One attempt; None when the state passed without a kill.

        Raises:
            NotSettled: the stack did not come to rest before or after it.
        """
        await self.settled()
        self.clients.asked.clear()
        folder = self.scratch / f"release-{time.monotonic_ns()}"
        made = await asyncio.to_thread(self.prepare, folder)
        pair = Pair(version("policy", made.policy, made.number), version("reward", made.reward, made.number), None)
        swap = Swap(self, cell, made, self.current, pair)
        async with self.clients.asking(self.count):
            row = await swap.run()
        if row is not None:
            killed_gateway = swap.kill.at if swap.kill and cell.victim is Victim.GATEWAY else None
            row["requests"] = account(self.clients.asked, killed_gateway)
            row |= await self._rest(swap.processes)
        return row

    async def settled(self) -> None:
        """Wait until the current release is alone."""
        await self.wait(self._alone, f"{self.current.release} is served alone")

    async def _alone(self) -> bool:
        return (await self.looker.look(self.current, self.current)).alone(self.current)

    async def _rest(self, before: int) -> Row:
        """Gauges, processes and leftovers, when they are as they were, or after a while."""
        until = time.monotonic() + QUIET_SECONDS
        gauges, count = await self._gauges(), self.processes.count()
        while (any(gauges.values()) or count > before) and time.monotonic() < until:
            await asyncio.sleep(0.5)
            gauges, count = await self._gauges(), self.processes.count()
        left, files = left_over(self.registry.root), files_left(self.registry.root)
        processes = {"before": before, "after": count}
        return {"gauges": gauges, "processes": processes, "left": left, "files_left": files}

    async def _gauges(self) -> dict[str, float]:
        try:
            return await self.processes.parts.gauges()
        except httpx.TransportError:
            return {"the gateway does not answer": 1.0}

    async def wait(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        """Until something is so.

        Raises:
            NotSettled: it was not within `patience`.
        """
        until = time.monotonic() + self.patience
        while not await true():
            if time.monotonic() > until:
                view = await self.looker.look(self.current, self.current)
                raise NotSettled(f"not within {self.patience:.0f} s: {what}; it is {view}")
            await asyncio.sleep(0.1)

    async def cell(self, cell: Cell) -> Row:
        """A cell, tried again while its state passes too quickly; see `run`."""
        for attempt in range(1, ATTEMPTS + 1):
            row = await self.run(cell)
            if row is not None:
                return row | {"attempts": attempt}
        return {"hit": Hit.MISSED, "attempts": ATTEMPTS}
