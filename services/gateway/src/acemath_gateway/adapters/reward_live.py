"""Scores from the reward service while candidates are still being written: `WS /v1/score/live`.

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

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from acemath_core.deadline import Deadline
from acemath_core.prompts import ChatMessage
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.live_connections import Connections
from acemath_gateway.adapters.live_job import LiveJob, NotLive
from acemath_gateway.adapters.reward_http import HttpScorer, HttpSession
from acemath_gateway.ports import ReleaseTarget

_WAITING_CHARS = 1024 * 1024


class LiveScorer:
    """`ScorerPort` on reward services that score live.

    Args:
        upstream: the services.
        posts: scores what could not be scored live.
        waiting_chars: bound on the frames of one connection that wait to be sent.
    """

    def __init__(self, upstream: Upstream, posts: HttpScorer, *, waiting_chars: int = _WAITING_CHARS) -> None:
        self._upstream, self._posts = upstream, posts
        self._connections = Connections(upstream, waiting_chars)

    @asynccontextmanager
    async def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AsyncIterator[LiveSession]:
        """See `ScorerPort`; a connection that has to be opened is opened beside the block."""
        job = LiveJob(self._upstream, self._connections, release, context, deadline)
        others = len(release.reward_endpoints) - 1
        session = LiveSession(
            job,
            partial(HttpSession, self._posts, release, context, deadline),
            self._upstream,
            lambda: self._posts.give_up(deadline, others=others),
        )
        try:
            job.start()
            yield session
        finally:
            job.close()
            await session.close()


class LiveSession:
    """`ScoringSession` of one job on a connection, and of calls, where there are any, for what that does not score."""

    def __init__(
        self, job: LiveJob, posts: Callable[[], HttpSession], upstream: Upstream, give_up: Callable[[], Deadline]
    ) -> None:
        self._job, self._make_posts, self._upstream, self._give_up = job, posts, upstream, give_up
        self._posts: HttpSession | None = None

    def piece(self, index: int, text: str) -> None:
        """Hand it to the connection."""
        self._job.piece(index, text)

    async def peek(self, index: int) -> float | None:
        """See `ScoringSession`."""
        return await self._job.peek(index)

    def drop(self, index: int) -> None:
        """See `ScoringSession`; the service frees what the candidate holds."""
        self._job.drop(index)

    async def score(self, index: int, candidate: str) -> float:
        """See `ScoringSession`."""
        try:
            return await self._job.score(index, candidate, self._give_up())
        except NotLive as reason:
            self._upstream.metrics.live_fallbacks.labels(reason.why).inc()
            self._posts = self._posts or self._make_posts()
            return await self._posts.score(index, candidate)

    async def close(self) -> None:
        """Give up the calls."""
        if self._posts is not None:
            await self._posts.close()
