"""Scores from the reward service while candidates are still being written: `WS /v1/score/live`, one for each job.

What the connection does not score is asked for with one `POST /v1/score` when the candidate is complete, so that the
connection can only make an answer come sooner: a score has the same bits either way, and failures are the POST's.

| what happens                                          | whose candidates are posted                        |
|-------------------------------------------------------|----------------------------------------------------|
| no connection, or it ends                             | all that have no score                             |
| an error with an index                                | that one; `context_length_exceeded` is final       |
| pieces are written faster than they can be sent       | those with a piece that found no room              |
| no score in time, while there is another replica      | all that have no score; the connection is given up |

Partial scores (`peek`) are of this connection only: a candidate that is to be posted has none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.live_outbox import Outbox
from acemath_gateway.adapters.live_socket import exchange
from acemath_gateway.adapters.live_wire import (
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
from acemath_gateway.adapters.reward_http import HttpScorer, HttpSession
from acemath_gateway.metrics import CallResult, LiveFallback
from acemath_gateway.ports import ReleaseTarget

_log = logging.getLogger(__name__)
_WAITING_CHARS = 1024 * 1024
_FAULTY = frozenset({CallResult.UNREACHABLE, CallResult.BROKEN, CallResult.TIMEOUT, CallResult.NOT_SERVED})


class _NotLive(Exception):
    """A candidate is to be posted, and why."""

    def __init__(self, why: LiveFallback) -> None:
        super().__init__(why)
        self.why = why


class LiveScorer:
    """`ScorerPort` on reward services that score live.

    Args:
        upstream: the services.
        posts: scores what could not be scored live.
        waiting_chars: bound on the frames of one connection that wait to be sent.
    """

    def __init__(self, upstream: Upstream, posts: HttpScorer, *, waiting_chars: int = _WAITING_CHARS) -> None:
        self._upstream, self._posts, self._waiting_chars = upstream, posts, waiting_chars

    @asynccontextmanager
    async def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AsyncIterator[LiveSession]:
        """See `ScorerPort`; the connection is opened beside the block."""
        link = _Link(self._upstream, release, Outbox(self._waiting_chars), deadline)
        others = len(release.reward_endpoints) - 1
        task = asyncio.create_task(link.run(context), name="live scoring")
        try:
            async with self._posts.session(release, context, deadline) as posts:
                yield LiveSession(link, posts, self._upstream, lambda: self._posts.give_up(deadline, others=others))
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (bug := task.exception()):
                _log.error("live scoring failed; this is a bug", exc_info=bug)


class LiveSession:
    """`ScoringSession` on one connection, and on calls for what that does not score."""

    def __init__(self, link: _Link, posts: HttpSession, upstream: Upstream, give_up: Callable[[], Deadline]) -> None:
        self._link, self._posts, self._upstream, self._give_up = link, posts, upstream, give_up

    def piece(self, index: int, text: str) -> None:
        """Hand it to the connection."""
        self._link.piece(index, text)

    async def peek(self, index: int) -> float | None:
        """See `ScoringSession`."""
        return await self._link.peek(index)

    def drop(self, index: int) -> None:
        """See `ScoringSession`; the service frees what the candidate holds."""
        self._link.drop(index)

    async def score(self, index: int, candidate: str) -> float:
        """See `ScoringSession`."""
        try:
            return await self._link.score(index, candidate, self._give_up())
        except _NotLive as reason:
            self._upstream.metrics.live_fallbacks.labels(reason.why).inc()
            return await self._posts.score(index, candidate)


Answer = float | InvalidRequest | CallFailed | _NotLive


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


class _Link:
    """One connection: candidates in, scores out."""

    def __init__(self, upstream: Upstream, release: ReleaseTarget, outbox: Outbox, deadline: Deadline) -> None:
        self._upstream, self._version, self._outbox, self._deadline = upstream, release.reward, outbox, deadline
        self._endpoint = next(iter(upstream.replicas.order(release.reward_endpoints)), None)
        self._candidates: dict[int, _Candidate] = {}
        self._ends_as = LiveFallback.NOT_OPEN
        self._over = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, context: Sequence[ChatMessage]) -> None:
        """Connect and exchange frames until the connection ends, which is no error of the job's."""
        self._task = asyncio.current_task()
        try:
            if self._endpoint is not None and not self._deadline.expired():
                with self._upstream.replicas.working(self._endpoint, 1):
                    opening = partial(self._opening, context)
                    await exchange(self._upstream, self._endpoint, opening, self._outbox, self._hear, self._deadline)
        except CallFailed as error:
            _log.info("live scoring ended: the reward service %s", error)
            self._failed(error.result)
        finally:
            self._release()

    def piece(self, index: int, text: str) -> None:
        """Send it, if the connection takes it; a candidate of which a piece is missing is not scored here."""
        candidate = self._of(index)
        if not text or candidate.answer.done():
            return
        candidate.sent.append(text)
        if not self._outbox.put(piece_frame(index, text)):
            candidate.settle(_NotLive(LiveFallback.SLOW))

    async def peek(self, index: int) -> float | None:
        """The score of what was sent of a candidate, unless it cannot be had or somebody asks for it already."""
        candidate = self._of(index)
        if candidate.answer.done() or candidate.ended or candidate.peeks or not candidate.sent:
            return None
        if not self._outbox.put(peek_frame(index)):
            return None
        candidate.peeks = 1
        candidate.partial = asyncio.get_running_loop().create_future()
        return await candidate.partial

    def drop(self, index: int) -> None:
        """Say so to the service, where it knows the candidate; what finds no room is freed with the connection."""
        candidate = self._of(index)
        known = bool(candidate.sent) and not candidate.answer.done()
        candidate.answer.cancel()
        candidate.peeked(None)
        candidate.sent.clear()
        if known:
            self._outbox.put(drop_frame(index))

    async def score(self, index: int, whole: str, give_up: Deadline) -> float:
        """The score of a complete candidate.

        Raises:
            InvalidRequest: it cannot be scored, here or elsewhere.
            _NotLive: it is to be posted.
        """
        candidate, started = self._of(index), time.monotonic()
        self._finish(index, candidate, whole)
        try:
            await asyncio.wait({candidate.answer}, timeout=give_up.remaining())
        except asyncio.CancelledError:
            self._upstream.count(CallResult.CANCELLED, started)
            raise
        if not candidate.answer.done():
            self._leave()
        return self._outcome(candidate.answer.result(), started)

    def _of(self, index: int) -> _Candidate:
        known = self._candidates.get(index)
        if known is None:
            known = self._candidates[index] = _Candidate(asyncio.get_running_loop().create_future())
            if self._over:
                known.settle(_NotLive(self._ends_as))
        return known

    def _opening(self, context: Sequence[ChatMessage]) -> str:
        self._ends_as = LiveFallback.CLOSED
        return open_frame(context, self._version, self._deadline.remaining())

    def _finish(self, index: int, candidate: _Candidate, whole: str) -> None:
        """Send what is missing of a candidate, and that it is complete."""
        if candidate.answer.done():
            return
        sent = "".join(candidate.sent)
        rest = whole[len(sent) :]
        frames = [piece_frame(index, rest)] if rest or not sent else []  # one without text has a piece too
        candidate.ended = True
        if not whole.startswith(sent):
            candidate.settle(_NotLive(LiveFallback.MISFIT))
        elif not self._outbox.put(*frames, end_frame(index)):
            candidate.settle(_NotLive(LiveFallback.SLOW))

    def _hear(self, message: str | bytes) -> None:
        for frame in read_frames(message):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
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
        if isinstance(answer, _NotLive):
            raise answer
        if isinstance(answer, float):
            self._upstream.count(CallResult.OK, started)
            return answer
        if isinstance(answer, InvalidRequest):
            self._upstream.count(CallResult.REFUSED, started)
            raise answer
        self._upstream.count(answer.result, started)
        raise _NotLive(LiveFallback.REFUSED)

    def _release(self) -> None:
        """Nothing is scored here any more."""
        self._over = True
        for candidate in self._candidates.values():
            candidate.settle(_NotLive(self._ends_as))

    def _leave(self) -> None:
        """A score did not come in time: the connection is given up, and with it all that have none."""
        self._ends_as = LiveFallback.TIMEOUT
        self._release()
        if not self._deadline.expired():
            self._failed(CallResult.TIMEOUT)
        if self._task is not None:
            self._task.cancel()

    def _failed(self, result: CallResult) -> None:
        self._upstream.count(result)
        if result in _FAULTY and self._endpoint is not None:
            hung = result is CallResult.TIMEOUT and not self._deadline.expired()
            self._upstream.replicas.shun(self._endpoint, hung=hung)
