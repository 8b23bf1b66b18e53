"""One swap with a kill in it: until the kill, and after it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from acemath_core.errors import ServiceError
from acemath_registry.collect import Retention
from bench.swapkills.asking import after, recovered
from bench.swapkills.matrix import Cell, Stage, Victim
from bench.swapkills.publishing import Publishing
from bench.swapkills.results import Hit, Last, Row, classify
from bench.swapkills.stack import left_over, make_old
from bench.swapkills.view import Pair, View, holds
from bench.swaps.load import Release
from bench.swaps.publishing import Prepared

if TYPE_CHECKING:
    from bench.swapkills.runner import Bench

LOOK_SECONDS, GLANCE_SECONDS = 0.01, 0.001
_EARLY = frozenset({Stage.PUBLISHING, Stage.HALF_PUBLISHED})
_SWEEP = Retention(newest=1_000_000, age_s=0.0)
"""Takes what dead publishers left, and no version."""


class NotSettled(Exception):
    """The stack does not come to rest; the message says how it stands."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A state that was reached, and who died in it.

    Attributes:
        at: monotonic time.
        seen: state of each of the four versions then.
        who: title or program of the process; empty when nobody was to die.
    """

    at: float
    seen: dict[str, str]
    who: str


@dataclass(slots=True)
class Swap:
    """One release put in the place of another.

    Attributes:
        old: what is served.
        new: what is to be served; its release is known when the publisher has said so.
        kill: the kill, once it was done.
        processes: how many the stack had before, with clients that were answered.
        final: the look that showed the swap to be over; None where it is not.
    """

    bench: Bench
    cell: Cell
    made: Prepared
    old: Pair
    new: Pair
    kill: Kill | None = None
    processes: int = 0
    final: View | None = None

    async def run(self) -> Row | None:
        """Publish, kill, wait; None when nobody could be killed."""
        await self.bench.wait(self._asked_by_all, f"answers by {self.old.release}")
        self.processes = self.bench.processes.count()
        async with self._publisher() as publisher:
            self.kill = await self._reach(publisher)
            if self.cell.victim is not Victim.PUBLISHER or self.kill is None:
                await self._finish(publisher)
        if self.cell.victim is Victim.PUBLISHER and self.kill is not None:
            return await self._without_publisher()
        row = self._row(await self._last())
        return row if self.kill is not None else None

    async def _asked_by_all(self) -> bool:
        return sum(one.release == self.old.release for one in self.bench.clients.asked) >= self.bench.count

    @contextlib.asynccontextmanager
    async def _publisher(self) -> AsyncIterator[Publishing]:
        made = self.made
        publisher = await Publishing.start(self.bench.registry, made.number, made.policy, made.reward)
        try:
            yield publisher
        finally:
            await publisher.close()

    def _note(self, publisher: Publishing) -> None:
        """Its release, as soon as it says so: before it promotes."""
        release = publisher.said.get("release")
        if release is None or self.new.release is not None:
            return
        self.new = replace(self.new, release=release)
        assert self.new.policy and self.new.reward
        known = Release(release, self.new.policy, self.new.reward, self.made.letter, self.made.scores)
        self.bench.clients.releases[release] = known

    # ------------------------------------------------------------------------------------------------- until the kill

    async def _reach(self, publisher: Publishing) -> Kill | None:
        """Look until the state is there and its victim lives; kill it."""
        known = await asyncio.to_thread(self._victim, publisher)
        until = time.monotonic() + self.bench.patience
        while time.monotonic() < until:
            self._note(publisher)
            view = await self._look()
            if holds(self.cell.stage, view, self.old, self.new):
                victim = known or await asyncio.to_thread(self._victim, publisher)
                if victim is not None or self.cell.victim is Victim.NOBODY:
                    return await self._strike(victim, view)
            if self._is_over(view):
                return None
            await asyncio.sleep(GLANCE_SECONDS if self.cell.stage in _EARLY else LOOK_SECONDS)
        return None

    def _victim(self, publisher: Publishing) -> psutil.Process | None:
        if self.cell.victim is Victim.PUBLISHER:
            return psutil.Process(publisher.process.pid)
        return self.bench.processes.victim(self.cell.victim, self.old, self.new)

    async def _look(self) -> View:
        if self.cell.stage in _EARLY:
            return self.bench.looker.glance(self.old, self.new)
        return await self.bench.looker.look(self.old, self.new)

    def _is_over(self, view: View) -> bool:
        if self.cell.stage in _EARLY:
            return view.promoted
        return view.alone(self.new) or view.rejected(self.new)

    async def _strike(self, victim: psutil.Process | None, view: View) -> Kill | None:
        who, at = "", time.monotonic()
        if victim is not None:
            try:
                who = _title(victim)
                victim.kill()
            except psutil.NoSuchProcess:
                return None
            if self.cell.victim is not Victim.PUBLISHER:  # that one is our child, whose end asyncio waits for
                await asyncio.to_thread(psutil.wait_procs, [victim], 10)
        if self.cell.stage in _EARLY:
            view = await self.bench.looker.look(self.old, self.new)
        return Kill(at, view.states(self.old, self.new), who)

    # ------------------------------------------------------------------------------------------------- after the kill

    async def _finish(self, publisher: Publishing) -> None:
        status = await publisher.ended()
        self._note(publisher)
        if status != 0:
            raise NotSettled(f"the publisher ended with status {status}; what it said is above")
        with contextlib.suppress(NotSettled):  # what is so instead is the result
            await self.bench.wait(self._done, "the swap is over")

    async def _done(self) -> bool:
        view = await self.bench.looker.look(self.old, self.new)
        over = view.rejected(self.new) or (view.alone(self.new) and self._answered(self.new) is not None)
        self.final = view if over else None
        return over

    def _answered(self, pair: Pair | None = None) -> float | None:
        return after(self.bench.clients.asked, self.kill.at if self.kill else 0.0, pair.release if pair else None)

    async def _last(self) -> Last:
        view = self.final or await self.bench.looker.look(self.old, self.new)  # who is busy may not answer a second one
        if self.new.release is not None and view.routed == self.new.release:
            self.bench.current = self.new
        new = self.new.release is not None and self._answered(self.new) is not None
        answered = new or (False if self._answered() is not None else None)
        return Last(view.promoted, answered, view.alone(self.new), view.rejected(self.new))

    def _row(self, last: Last) -> Row:
        kill = self.kill
        return {
            "hit": Hit.NONE if self.cell.victim is Victim.NOBODY else Hit.HIT,
            "killed": kill.who if kill else "",
            "seen": kill.seen if kill else {},
            "end": classify(last),
            "seconds_until_answered": recovered(self.bench.clients.asked, kill.at if kill else 0.0),
            "seconds_until_new_release": self._answered(self.new) if self.new.release else None,
            "seconds_until_over": round(time.monotonic() - kill.at, 2) if kill else None,
        }

    async def _without_publisher(self) -> Row:
        """It died: what is in the registry, does the old release still answer, does the next publisher come through?"""
        with contextlib.suppress(NotSettled):
            await self.bench.wait(self._answers, "an answer since the kill")
        row = self._row(await self._last())
        found: dict[str, Any] = {"left": left_over(self.bench.registry.root), "half": self._half()}
        make_old(self.bench.registry.root)
        self.bench.registry.collect(_SWEEP, by="bench.swapkills", apply=True)
        found["left_after_gc"] = left_over(self.bench.registry.root)
        again = time.monotonic()
        async with self._publisher() as publisher:
            await self._finish(publisher)
        found |= {"next": classify(await self._last()), "next_seconds": round(time.monotonic() - again, 2)}
        return row | {"seconds_until_new_release": self._answered(self.new), "after_publisher": found}

    async def _answers(self) -> bool:
        return self._answered() is not None

    def _half(self) -> list[str]:
        """Versions that can be seen and are not whole."""
        wrong = []
        for ref in self.bench.registry.versions():
            if str(ref) in (self.new.policy, self.new.reward):
                try:
                    self.bench.registry.verify(ref)
                except ServiceError as error:
                    wrong.append(f"{ref}: {error.message}")
        return wrong


def _title(process: psutil.Process) -> str:
    line = process.cmdline()
    if "-m" in line:
        return line[line.index("-m") + 1]
    return Path(line[0].split()[0]).name if line and line[0].split() else process.name()
