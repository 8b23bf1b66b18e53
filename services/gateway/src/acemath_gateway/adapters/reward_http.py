"""Scores from the reward service: one `POST /v1/score` for each candidate, as soon as the candidate is there.

The service batches across calls, so that one candidate a call costs nothing there and each score comes when it is
ready. Scoring has no side effect: any failure may be tried again at another replica, within the retry budget.
An overloaded service is waited for, since the candidates behind it have been paid for.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic import ValidationError

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_core.wire import ScoreRequest, ScoreResponse, Turn
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import ReleaseTarget

_FULL = frozenset({CallResult.OVERLOADED, CallResult.LATE})
_FIRST_WAIT_SECONDS = {CallResult.OVERLOADED: 0.25, CallResult.LATE: 2.0}
_LONGEST_WAIT_SECONDS = 8.0
_DOUBLINGS = 6


class HttpScorer:
    """`ScorerPort` on reward services.

    Args:
        upstream: connections to them.
        patience_seconds: longest wait for one service while there is another one to ask; never more than half of what
            is left of the request's time.
    """

    def __init__(self, upstream: Upstream, *, patience_seconds: float = 30.0) -> None:
        self._upstream, self._patience = upstream, patience_seconds

    @asynccontextmanager
    async def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AsyncIterator[HttpSession]:
        """See `ScorerPort`."""
        yield HttpSession(self, release, context, deadline)

    async def score(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], candidate: str, deadline: Deadline
    ) -> float:
        """The raw score of one candidate.

        Raises:
            Unavailable: (`reward_unavailable`, `reward_overloaded`) no replica gave a score.
            DeadlineExceeded: none did in time.
            InvalidRequest: the service cannot score this candidate.
        """
        turns = [Turn(role=turn["role"], content=turn["content"]) for turn in context]
        request = ScoreRequest(messages=turns, candidates=[candidate], model=release.reward)
        self._upstream.budget.earn()
        round_ = 0
        while True:
            try:
                return await self._any_replica(release, request, deadline)
            except CallFailed as error:
                if error.result not in _FULL:
                    raise _declared(error, deadline) from error
                await self._wait(error, round_, deadline)
                round_ += 1

    def give_up(self, deadline: Deadline, *, others: int) -> Deadline:
        """When to leave a replica that says nothing: in time to ask another one, where there is one."""
        if others <= 0:
            return deadline
        return Deadline.after(min(self._patience, deadline.remaining() / 2))

    async def _any_replica(self, release: ReleaseTarget, request: ScoreRequest, deadline: Deadline) -> float:
        failure = CallFailed(CallResult.UNREACHABLE, "is nowhere to be found")
        replicas = self._upstream.replicas
        ordered = replicas.order(release.reward_endpoints)
        for attempt, endpoint in enumerate(ordered * 2 if len(ordered) == 1 else ordered):
            if attempt and not self._try_again(failure, deadline, alone=len(ordered) == 1):
                break
            give_up = self.give_up(deadline, others=len(ordered) - attempt - 1)
            try:
                score = await self._one(endpoint, release.reward, request, deadline, give_up)
            except CallFailed as error:
                failure = error
                if error.result not in _FULL:
                    replicas.shun(endpoint, hung=error.result is CallResult.TIMEOUT and not deadline.expired())
            else:
                replicas.well(endpoint)
                return score
        raise failure

    def _try_again(self, failure: CallFailed, deadline: Deadline, *, alone: bool) -> bool:
        """Whether another attempt makes sense: a single replica only when it cut a connection, e.g. an idle one."""
        if failure.result is CallResult.LATE or deadline.expired():
            return False
        if alone and failure.result is not CallResult.BROKEN:
            return False
        # One that kept quiet has cost its time already: asking another one for it is no storm.
        if failure.result is not CallResult.TIMEOUT and not self._upstream.budget.take():
            return False
        self._count_retry()
        return True

    def _count_retry(self) -> None:
        self._upstream.metrics.upstream_retries.labels(self._upstream.role).inc()

    async def _one(
        self, endpoint: str, version: str, request: ScoreRequest, deadline: Deadline, give_up: Deadline
    ) -> float:
        metrics, role = self._upstream.metrics, self._upstream.role
        started, result = time.monotonic(), CallResult.CANCELLED
        try:
            with self._upstream.replicas.working(endpoint, 1):
                body = request.model_dump(mode="json", exclude_none=True)
                answer = await self._upstream.post(f"{endpoint}/v1/score", body, deadline, give_up=give_up)
            score = _score_in(answer, version)
            result = CallResult.OK
            return score
        except InvalidRequest:
            result = CallResult.REFUSED
            raise
        except CallFailed as error:
            result = error.result
            if result is CallResult.MISMATCH:
                metrics.version_mismatch.labels(role).inc()
            raise
        finally:
            metrics.upstream_calls.labels(role, result).inc()
            metrics.upstream_seconds.labels(role).observe(time.monotonic() - started)

    async def _wait(self, failure: CallFailed, round_: int, deadline: Deadline) -> None:
        """Until the service may have room: what it asked for, else longer each round, spread so that we come apart.

        Raises:
            Unavailable: (`reward_overloaded`) that would be after the deadline.
        """
        own = min(_FIRST_WAIT_SECONDS[failure.result] * 2 ** min(round_, _DOUBLINGS), _LONGEST_WAIT_SECONDS)
        seconds = (failure.retry_after or own) * random.uniform(1.0, 1.25)
        if seconds >= deadline.remaining():
            raise _declared(failure, deadline)
        await asyncio.sleep(seconds)
        self._count_retry()


class HttpSession:
    """`ScoringSession` of calls that have nothing to do with each other."""

    def __init__(
        self, scorer: HttpScorer, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> None:
        self._scorer, self._release, self._context, self._deadline = scorer, release, context, deadline

    def piece(self, index: int, text: str) -> None:
        """Nothing: the whole candidate is sent when it is complete."""

    async def score(self, index: int, candidate: str) -> float:
        """See `ScoringSession`."""
        return await self._scorer.score(self._release, self._context, candidate, self._deadline)


def _score_in(answer: bytes, version: str) -> float:
    try:
        response = ScoreResponse.model_validate_json(answer)
    except ValidationError as error:
        raise CallFailed(CallResult.BROKEN, "answered with something other than a score") from error
    if response.model != version:
        raise CallFailed(CallResult.MISMATCH, f"scored with {response.model!r}, the lease is on {version!r}")
    if len(response.data) != 1 or response.data[0].index != 0 or not math.isfinite(response.data[0].score):
        raise CallFailed(CallResult.BROKEN, "did not answer with one finite score for one candidate")
    return response.data[0].score


def _declared(failure: CallFailed, deadline: Deadline) -> Unavailable | DeadlineExceeded:
    if failure.result is CallResult.LATE or (failure.result is CallResult.TIMEOUT and deadline.expired()):
        return DeadlineExceeded(f"the reward service {failure}; send a larger deadline_seconds", should_retry=False)
    overloaded = failure.result is CallResult.OVERLOADED
    return Unavailable(
        f"the reward service {failure}; try again shortly",
        code=ErrorCode.REWARD_OVERLOADED if overloaded else ErrorCode.REWARD_UNAVAILABLE,
        retry_after=failure.retry_after or 2.0,
    )
