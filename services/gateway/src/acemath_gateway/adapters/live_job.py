"""One job on a live connection: candidates in, scores out, and why a candidate is to be posted instead."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.attempts import at_fault
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.live_connections import Connection, Connections
from acemath_gateway.adapters.live_wire import (
    DoneFrame,
    Frame,
    PartialFrame,
    ScoreFrame,
    drop_frame,
    end_frame,
    failure,
    open_frame,
    peek_frame,
    piece_frame,
    read_frames,
)
from acemath_gateway.metrics import CallResult, LiveFallback
from acemath_gateway.ports import ReleaseTarget
from acemath_web.context import current_request_id

_log = logging.getLogger(__name__)
_FAULTY = frozenset({CallResult.UNREACHABLE, CallResult.BROKEN, CallResult.TIMEOUT, CallResult.NOT_SERVED})


class NotLive(Exception):
    """A candidate is to be posted, and why."""

    def __init__(self, why: LiveFallback) -> None:
        super().__init__(why)
        self.why = why


Answer = float | InvalidRequest | CallFailed | NotLive


@dataclass(slots=True)
class _Candidate:
    """One candidate on the connection; `answer` gets its score, or why there is none, and `partial` that of a peek.

    `peeks` is the number of partial scores that are owed, at most 1: also of one that nobody waits for any more.
    """

    answer: asyncio.Future[Answer]
    partial: asyncio.Future[float | None] | None = None
    peeks: int = 0
    sent: list[str] = field(default_factory=list)
    ended: bool = False

    def settle(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
        self.peeked(None)

    def peeked(self, score: float | None) -> None:
        if self.partial is not None and not self.partial.done():
            self.partial.set_result(score)

    def frames(self, index: int) -> Iterator[str]:
        """What another connection has to be told of it."""
        if self.answer.done() or not (self.sent or self.ended):
            return
        yield piece_frame(index, "".join(self.sent))
        if self.ended:
            yield end_frame(index)
        elif self.peeks:
            yield peek_frame(index)


class LiveJob:
    """The candidates of one request, on one connection after the other where the first was stale.

    Args:
        upstream: the services; calls are counted there.
        connections: gives one.
        release: whose reward version scores, and where it is.
        context: the turns that candidates answer.
        deadline: of the request.
    """

    def __init__(
        self,
        upstream: Upstream,
        connections: Connections,
        release: ReleaseTarget,
        context: Sequence[ChatMessage],
        deadline: Deadline,
    ) -> None:
        self._upstream, self._connections = upstream, connections
        self._version, self._messages, self._deadline = release.reward, context, deadline
        self._endpoint = next(iter(upstream.replicas.order(release.reward_endpoints)), None)
        self._candidates: dict[int, _Candidate] = {}
        self._connection: Connection | None = None
        self._working = contextlib.ExitStack()
        self._context = contextvars.copy_context()  # a connection's own is that of another request
        self._ends_as = LiveFallback.NOT_OPEN
        self._over, self._started = False, time.monotonic()

    def start(self) -> None:
        """Take a connection, if there is somebody to connect to; waits for nothing."""
        if self._endpoint is None or self._deadline.expired():
            self._release()
            return
        self._working.enter_context(self._upstream.replicas.working(self._endpoint, 1))
        self._use(self._connections.take(self._endpoint))

    def close(self) -> None:
        """Nothing more is wanted: the service frees what it has of this job."""
        if self._connection is not None:
            self._connection.leave()
        self._release()

    def piece(self, index: int, text: str) -> None:
        """Send it, if the connection takes it; a candidate of which a piece is missing is not scored here."""
        candidate = self._of(index)
        if not text or candidate.answer.done():
            return
        candidate.sent.append(text)
        if not self._put(piece_frame(index, text)):
            candidate.settle(NotLive(LiveFallback.SLOW))

    async def peek(self, index: int) -> float | None:
        """The score of what was sent of a candidate, unless it cannot be had or somebody asks for it already."""
        candidate = self._of(index)
        if candidate.answer.done() or candidate.ended or candidate.peeks or not candidate.sent:
            return None
        if not self._put(peek_frame(index)):
            return None
        candidate.peeks = 1
        candidate.partial = asyncio.get_running_loop().create_future()
        return await candidate.partial

    def drop(self, index: int) -> None:
        """Say so to the service, where it knows the candidate; what finds no room is freed with the job."""
        candidate = self._of(index)
        known = bool(candidate.sent) and not candidate.answer.done()
        candidate.answer.cancel()
        candidate.peeked(None)
        candidate.sent.clear()
        if known:
            self._put(drop_frame(index))

    async def score(self, index: int, whole: str, give_up: Deadline) -> float:
        """The score of a complete candidate.

        Raises:
            InvalidRequest: it cannot be scored, here or elsewhere.
            NotLive: it is to be posted.
        """
        candidate, started = self._of(index), time.monotonic()
        self._finish(index, candidate, whole)
        clock = asyncio.get_running_loop().call_later(give_up.remaining(), self._give_up, candidate)
        try:
            return self._outcome(await candidate.answer, started)
        except asyncio.CancelledError:
            self._upstream.count(CallResult.CANCELLED, started)
            raise
        finally:
            clock.cancel()

    def opening(self) -> str:
        """See `Job`."""
        self._ends_as = LiveFallback.CLOSED
        request = self._context.run(current_request_id)
        return open_frame(self._messages, self._version, self._deadline.remaining(), request)

    def hear(self, message: str | bytes) -> None:
        """See `Job`."""
        for frame in read_frames(message):
            self._take(frame)

    def lost(self, error: CallFailed, *, stale: bool) -> None:
        """See `Job`; what a stale connection was told, another one is."""
        self._connection = None
        if stale and self._endpoint is not None:
            self._context.run(self._replace, self._endpoint)
            return
        self._context.run(_log.info, "live scoring ended: the reward service %s", error)
        self._failed(error.result)
        self._release()

    def _replace(self, endpoint: str) -> None:
        self._use(self._connections.take(endpoint, fresh=True))

    def _use(self, connection: Connection) -> None:
        frames = [frame for index, one in self._candidates.items() for frame in one.frames(index)]
        self._connection = connection
        connection.begin(self, self._deadline)
        if frames and not connection.outbox.put(*frames):
            connection.abort()
            self._ends_as = LiveFallback.SLOW
            self._release()

    def _put(self, *frames: str) -> bool:
        return self._connection is not None and self._connection.outbox.put(*frames)

    def _of(self, index: int) -> _Candidate:
        known = self._candidates.get(index)
        if known is None:
            known = self._candidates[index] = _Candidate(asyncio.get_running_loop().create_future())
            if self._over:
                known.settle(NotLive(self._ends_as))
        return known

    def _finish(self, index: int, candidate: _Candidate, whole: str) -> None:
        """Send what is missing of a candidate, and that it is complete."""
        if candidate.answer.done():
            return
        sent = "".join(candidate.sent)
        rest = whole[len(sent) :]
        frames = [piece_frame(index, rest)] if rest or not sent else []  # one without text has a piece too
        candidate.ended = True
        if not whole.startswith(sent):
            candidate.settle(NotLive(LiveFallback.MISFIT))
        elif not self._put(*frames, end_frame(index)):
            candidate.settle(NotLive(LiveFallback.SLOW))
        candidate.sent.append(rest)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, DoneFrame):
            raise CallFailed(CallResult.BROKEN, "ends a job that was not left")
        if isinstance(frame, PartialFrame):
            return self._hear_partial(frame)
        what = frame.score if isinstance(frame, ScoreFrame) else failure(frame)
        if frame.index is None and isinstance(what, CallFailed):
            raise what
        candidate = self._candidates.get(frame.index) if frame.index is not None else None
        if candidate is None or (isinstance(what, float) and not candidate.ended):
            raise CallFailed(CallResult.BROKEN, "speaks of a candidate that it was not asked for")
        if isinstance(what, float) and self._endpoint is not None:
            self._upstream.replicas.well(self._endpoint)
        candidate.settle(what)

    def _hear_partial(self, frame: PartialFrame) -> None:
        candidate = self._candidates.get(frame.index)
        if candidate is None or not candidate.peeks:
            raise CallFailed(CallResult.BROKEN, "gave a partial score that nobody asked for")
        candidate.peeks = 0
        candidate.peeked(frame.score)

    def _outcome(self, answer: Answer, started: float) -> float:
        if isinstance(answer, NotLive):
            raise answer
        if isinstance(answer, float):
            self._upstream.count(CallResult.OK, started)
            return answer
        if isinstance(answer, InvalidRequest):
            self._upstream.count(CallResult.REFUSED, started)
            raise answer
        self._upstream.count(answer.result, started)
        raise NotLive(LiveFallback.REFUSED)

    def _release(self) -> None:
        """Nothing is scored here any more."""
        self._over, self._connection = True, None
        self._working.close()
        for candidate in self._candidates.values():
            candidate.settle(NotLive(self._ends_as))

    def _give_up(self, late: _Candidate) -> None:
        """A score did not come in time: the connection is given up, and with it all that have none."""
        if late.answer.done():  # in this very turn of the loop
            return
        self._ends_as = LiveFallback.TIMEOUT
        if self._connection is not None:
            self._connection.abort()
        self._release()
        if not self._deadline.expired():
            self._failed(CallResult.TIMEOUT)

    def _failed(self, result: CallResult) -> None:
        self._upstream.count(result)
        fault = result in _FAULTY and at_fault(result, self._deadline, self._started)
        if fault and self._endpoint is not None:
            hung = result is CallResult.TIMEOUT and not self._deadline.expired()
            self._upstream.replicas.shun(self._endpoint, hung=hung)
