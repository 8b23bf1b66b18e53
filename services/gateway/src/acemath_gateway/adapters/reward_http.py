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
from collections.abc import Sequence

from pydantic import ValidationError

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_core.wire import ScoreRequest, ScoreResponse, Turn
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import ReleaseTarget

_OVERLOAD_ROUNDS = 8
_OVERLOAD_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 2.0


class HttpScorer:
    """`ScorerPort` on reward services.

    Args:
        upstream: connections to them.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def score(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], candidate: str, deadline: Deadline
    ) -> float:
        """The raw score of one candidate; see `ScorerPort`.

        Raises:
            Unavailable: (`reward_unavailable`, `reward_overloaded`) no replica gave a score in time.
            InvalidRequest: the service cannot score this candidate.
        """
        turns = [Turn(role=turn["role"], content=turn["content"]) for turn in context]
        request = ScoreRequest(messages=turns, candidates=[candidate], model=release.reward)
        self._upstream.budget.earn()
        for round_ in range(_OVERLOAD_ROUNDS):
            try:
                return await self._any_replica(release, request, deadline)
            except CallFailed as error:
                if error.result is not CallResult.OVERLOADED or round_ == _OVERLOAD_ROUNDS - 1:
                    raise _declared(error) from error
                await self._wait(error, round_, deadline)
        raise AssertionError("unreachable: the last round returns or raises")

    async def _any_replica(self, release: ReleaseTarget, request: ScoreRequest, deadline: Deadline) -> float:
        failure = CallFailed(CallResult.UNREACHABLE, "is nowhere to be found")
        ordered = self._upstream.replicas.order(release.reward_endpoints)
        for attempt, endpoint in enumerate(ordered * 2 if len(ordered) == 1 else ordered):
            if attempt and not self._try_again(failure, alone=len(ordered) == 1):
                break
            try:
                return await self._one(endpoint, release.reward, request, deadline)
            except CallFailed as error:
                failure = error
                if error.result is not CallResult.OVERLOADED:
                    self._upstream.replicas.shun(endpoint)
        raise failure

    def _try_again(self, failure: CallFailed, *, alone: bool) -> bool:
        """Whether another attempt makes sense: a single replica only when it cut a connection, e.g. an idle one."""
        if failure.result is CallResult.TIMEOUT or (alone and failure.result is not CallResult.BROKEN):
            return False
        if not self._upstream.budget.take():
            return False
        self._upstream.metrics.upstream_retries.labels(self._upstream.role).inc()
        return True

    async def _one(self, endpoint: str, version: str, request: ScoreRequest, deadline: Deadline) -> float:
        metrics, role = self._upstream.metrics, self._upstream.role
        started, result = time.monotonic(), CallResult.CANCELLED
        try:
            with self._upstream.replicas.working(endpoint, 1):
                body = request.model_dump(mode="json", exclude_none=True)
                answer = await self._upstream.post(f"{endpoint}/v1/score", body, deadline)
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
        """Until the service may have room: what it asked for, else longer each round, spread so that we come apart."""
        wanted = failure.retry_after or _OVERLOAD_WAIT_SECONDS * 2**round_
        seconds = min(wanted, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)
        if seconds >= deadline.remaining():
            raise _declared(failure)
        await asyncio.sleep(seconds)


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


def _declared(failure: CallFailed) -> Unavailable:
    overloaded = failure.result is CallResult.OVERLOADED
    return Unavailable(
        f"the reward service {failure}; try again shortly",
        code=ErrorCode.REWARD_OVERLOADED if overloaded else ErrorCode.REWARD_UNAVAILABLE,
        retry_after=failure.retry_after or 2.0,
    )
