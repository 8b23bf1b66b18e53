"""Takes lines and works on them until told to stop; says all the while which ones it has.

A worker that dies says nothing any more, and its lines go to another (`Rules.idle_seconds`). One that is told to stop
puts its lines back at once. One that Redis is away from works on, and keeps its results when Redis is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from acemath_core.errors import Unavailable
from acemath_core.jobs import LineState
from acemath_gateway.jobqueue.metrics import JobMetrics, LineOutcome
from acemath_gateway.jobqueue.runs import LineRunner, PutBack, results_full
from acemath_gateway.jobqueue.store import Finished, JobStore, Kept, TakenLine
from acemath_gateway.routes.disconnect import beside

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5  # how soon a line that was handed to another gateway is seen
_STOCK_SECONDS = 5.0
_KEEP_SECONDS = 3600.0  # while the store is away there is nothing else to do
_BEATS = 10
"""So many beats fit into the time after which a line goes to another worker."""


class Worker:
    """This gateway's part in all jobs.

    Args:
        store: where jobs are kept.
        runner: works on a line.
        at_once: lines worked on at once.
        idle_seconds: the store's `Rules.idle_seconds`.
        ready: whether there is a release to work with; nothing is taken while there is none.
        metrics: where lines are counted.
    """

    def __init__(
        self,
        store: JobStore,
        runner: LineRunner,
        *,
        at_once: int,
        idle_seconds: float,
        ready: Callable[[], bool],
        metrics: JobMetrics,
    ) -> None:
        self._store, self._runner, self._at_once = store, runner, at_once
        self._idle_seconds, self._ready, self._metrics = idle_seconds, ready, metrics
        self._taking, self._look = asyncio.Lock(), asyncio.Event()
        self._running: dict[tuple[str, int], asyncio.Task[Finished | PutBack]] = {}

    def look(self) -> None:
        """There may be something to do: a job was made here, or one has ended."""
        self._look.set()

    async def run(self) -> None:
        """Work until cancelled; then put back what is not finished."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._show_stock())
            for _ in range(self._at_once):
                tasks.create_task(self._work())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._idle_seconds / _BEATS)
            with suppress(Unavailable):  # the store asserts again by itself when it is back
                for line in await self._store.beat():
                    self._stop(line)

    async def _show_stock(self) -> None:
        while True:
            with suppress(Unavailable):
                self._metrics.show(await self._store.stock())
            await asyncio.sleep(_STOCK_SECONDS * random.uniform(0.8, 1.2))

    async def _work(self) -> None:
        while True:
            async with self._taking:  # one asks, the others wait for it
                line = await self._next()
            with self._metrics.running.track_inprogress():
                await self._work_on(line)

    async def _next(self) -> TakenLine:
        while True:
            self._look.clear()
            if self._ready():
                with suppress(Unavailable):
                    line = await self._store.take()
                    if line is not None:
                        return line
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS * random.uniform(0.7, 1.3)):
                    await self._look.wait()

    async def _work_on(self, line: TakenLine) -> None:
        begun = time.monotonic()
        try:
            async with beside(self._runner.run(line)) as running:
                self._running[line.job, line.line] = running
                await asyncio.wait({running})
            outcome = LineOutcome.STOPPED if running.cancelled() else await self._conclude(line, running.result())
        except asyncio.CancelledError:
            with suppress(Unavailable):
                await self._store.put_back(line, after_seconds=0.0, count=False)
            raise
        finally:
            self._running.pop((line.job, line.line), None)
        self._metrics.lines.labels(outcome).inc()
        facts = {"job": line.job, "line": line.line, "runs": line.runs, "outcome": outcome}
        _log.info("line of a job", extra=facts | {"took_seconds": round(time.monotonic() - begun, 6)})

    def _stop(self, line: TakenLine) -> None:
        running = self._running.get((line.job, line.line))
        if running is not None:
            running.cancel()

    async def _conclude(self, line: TakenLine, result: Finished | PutBack) -> LineOutcome:
        if isinstance(result, PutBack):
            return await self._put_back(line, result)
        kept = await self._keep(line, result)
        if kept is Kept.FULL:
            result = results_full(line)
            kept = await self._keep(line, result)
        if kept is None:
            return LineOutcome.UNKEPT
        if kept is Kept.ENDED:
            return LineOutcome.STOPPED
        return LineOutcome.SUCCEEDED if result.state is LineState.SUCCEEDED else LineOutcome.FAILED

    async def _put_back(self, line: TakenLine, result: PutBack) -> LineOutcome:
        after = self._idle_seconds if result.counts and line.runs > 1 else self._idle_seconds / 3
        with suppress(Unavailable):  # then it is idle by itself, and counts as a run
            await self._store.put_back(line, after_seconds=after, count=result.counts)
        return LineOutcome.AGAIN if result.counts else LineOutcome.POSTPONED

    async def _keep(self, line: TakenLine, result: Finished) -> Kept | None:
        """Keep the result; while the store is away try again for `_KEEP_SECONDS`. None when it never came back."""
        until, pause = time.monotonic() + _KEEP_SECONDS, 0.1
        while True:
            try:
                return await self._store.finish(line, result)
            except Unavailable:
                if time.monotonic() + pause > until:
                    self._store.drop(line)
                    return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
