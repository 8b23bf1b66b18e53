"""Live connections that serve one job after another: a handshake costs both sides more than the frames of a job."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.live_outbox import Outbox
from acemath_gateway.adapters.live_socket import connected, exchange
from acemath_gateway.adapters.live_wire import DONE, DoneFrame, read_frames
from acemath_gateway.metrics import CallResult
from acemath_gateway.trace_context import trace_headers

_log = logging.getLogger(__name__)
_DONE_SECONDS = 5.0  # a service that has not freed a job by then is stuck
_REST_SECONDS = 15.0  # less than the 30 s after which the service closes it by itself
_AGE_SECONDS = 300.0  # whoever balances connections may send the next one elsewhere
_MOST_RESTING = 64


class Job(Protocol):
    """Who uses a connection."""

    def opening(self) -> str:
        """The first frame, as it is sent."""
        ...

    def hear(self, message: str | bytes) -> None:
        """A message for it. Raises `CallFailed` when that is to end the connection."""
        ...

    def lost(self, error: CallFailed, *, stale: bool) -> None:
        """There is no connection any more. `stale`: it had served others, and ended before this job heard anything."""
        ...


class Connection:
    """One websocket, opened for its first job.

    Args:
        upstream: whose key is shown.
        endpoint: base URL of the service.
        outbox: what is to be sent.
        home: is told whenever it may be used again, and when it has ended.
        once: it serves one job only.
    """

    def __init__(
        self, upstream: Upstream, endpoint: str, outbox: Outbox, home: Connections, *, once: bool = False
    ) -> None:
        self.endpoint, self.outbox, self._once = endpoint, outbox, once
        self._upstream, self._home = upstream, home
        self._job: Job | None = None
        self._task: asyncio.Task[None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._opening = ""
        self._since = time.monotonic()
        self._opened = self._reused = self._heard = self._leaving = self._over = False

    def young(self) -> bool:
        """Whether it may serve another job."""
        return not self._over and time.monotonic() - self._since < _AGE_SECONDS

    def begin(self, job: Job, deadline: Deadline) -> None:
        """Serve a job, after the handshake if this is the first one; never while there is another."""
        self._set_clock(None)
        self._job, self._heard, self._reused = job, False, self._task is not None
        if self._task is None:
            self._task = asyncio.create_task(self._run(deadline), name="live connection")
            # Not at the end of the task itself: one that is cancelled before its first step never gets there.
            self._task.add_done_callback(lambda _: self._home.ended(self))
        else:
            self._open(job)

    def leave(self) -> None:
        """The job wants nothing more: the service frees it, and what waits to be sent is forgotten."""
        self._job = None
        if self._once or self._over or not self._opened:
            self.abort()
            return
        if self._opening in self.outbox.clear():  # the service knows nothing of this job
            self._rest()
            return
        self.outbox.put_first(DONE)
        self._leaving = True
        self._set_clock(_DONE_SECONDS)

    def abort(self) -> None:
        """Close it at once; the job is not told."""
        self._job, self._over = None, True  # nobody takes it before its task ends
        self._set_clock(None)
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Close it, and wait until it is."""
        self.abort()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self, deadline: Deadline) -> None:
        lost = CallFailed(CallResult.BROKEN, "is not connected any more")
        try:
            async with connected(self._upstream, self.endpoint, deadline) as socket:
                self._opened = True
                if self._job is not None:
                    self._open(self._job)
                await exchange(socket, self.outbox, self._hear)
        except CallFailed as error:
            lost = error
        except Exception:
            _log.exception("a live connection failed; this is a bug")
        finally:
            self._over = True
            self._set_clock(None)
            self._lost(lost)

    def _lost(self, error: CallFailed) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.lost(error, stale=self._reused and not self._heard)

    def _hear(self, message: str | bytes) -> None:
        if self._job is not None:
            self._heard = True  # also of what ends it: an error is an answer
            self._job.hear(message)
        elif not self._leaving:
            raise CallFailed(CallResult.BROKEN, "speaks of no job")
        elif any(isinstance(frame, DoneFrame) for frame in read_frames(message)):
            self._leaving = False
            self._rest()

    def _open(self, job: Job) -> None:
        self._opening = job.opening()
        self.outbox.put_first(self._opening)

    def _rest(self) -> None:
        self._set_clock(_REST_SECONDS)
        self._home.rest(self)

    def _set_clock(self, seconds: float | None) -> None:
        """Close it after so many seconds, unless this is called before."""
        if self._clock is not None:
            self._clock.cancel()
        self._clock = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.abort)


class Connections:
    """Those of one kind of service; the last one to rest is the first to be used, so that others may end.

    Args:
        upstream: the services; closing it closes all connections.
        waiting_chars: bound on the frames of one connection that wait to be sent.
    """

    def __init__(self, upstream: Upstream, waiting_chars: int) -> None:
        self._upstream, self._waiting_chars = upstream, waiting_chars
        self._resting: dict[str, list[Connection]] = {}
        self._all: set[Connection] = set()
        upstream.at_close(self._close)

    def take(self, endpoint: str, *, fresh: bool = False) -> Connection:
        """One for a job: one that rests, or another.

        A request that is traced has one of its own, since the handshake is where its trace is shown.
        """
        traced = bool(trace_headers())
        resting = self._resting.get(endpoint, [])
        while resting and not fresh and not traced:
            if (found := resting.pop()).young():
                return found
            found.abort()
        made = Connection(self._upstream, endpoint, Outbox(self._waiting_chars), self, once=traced)
        self._all.add(made)
        return made

    def rest(self, connection: Connection) -> None:
        """It may be used again."""
        resting = self._resting.setdefault(connection.endpoint, [])
        if len(resting) >= _MOST_RESTING or not connection.young():
            connection.abort()
        else:
            resting.append(connection)

    def ended(self, connection: Connection) -> None:
        """It may not."""
        self._all.discard(connection)
        resting = self._resting.get(connection.endpoint, [])
        if connection in resting:
            resting.remove(connection)
        if not resting:
            self._resting.pop(connection.endpoint, None)  # endpoints change with every release

    async def _close(self) -> None:
        await asyncio.gather(*(one.close() for one in list(self._all)))
