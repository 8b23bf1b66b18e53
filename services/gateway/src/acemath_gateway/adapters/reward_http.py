"""Scores from the reward service: a candidate is asked for as soon as it is there, with those that end beside it.

Candidates of one job that end in the same turn of the event loop go in one `POST /v1/score`, which then streams each
score; one that ends alone goes alone, and none ever waits for another. The service batches across calls, so that a
call more costs nothing there but its own handling. Scoring has no side effect: any failure may be tried again at
another replica, within the retry budget. An overloaded service is waited for, since the candidates behind it have been
paid for.

What a call for several does not score because of one of them (it is refused, or answered with nonsense) is asked for
one by one, so that each candidate has its own score or its own failure, as if it had been alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_core.wire import MAX_CANDIDATES, Turn
from acemath_gateway.adapters.attempts import at_fault
from acemath_gateway.adapters.hedging import hedged
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.reward_call import ScoreCall, Wanted
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
        most_together: candidates in one call.
        hedge_seconds: a call that takes longer is made at another service, too, where there is one and the retry budget
            allows it; None never does that.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        patience_seconds: float = 30.0,
        most_together: int = MAX_CANDIDATES,
        hedge_seconds: float | None = None,
    ) -> None:
        self._upstream, self._patience, self.most_together = upstream, patience_seconds, most_together
        self._hedge = hedge_seconds

    @asynccontextmanager
    async def session(
        self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> AsyncIterator[HttpSession]:
        """See `ScorerPort`."""
        session = HttpSession(self, release, context, deadline)
        try:
            yield session
        finally:
            await session.close()

    async def ask(self, release: ReleaseTarget, call: ScoreCall, wanted: Sequence[Wanted], deadline: Deadline) -> None:
        """Have candidates scored; each gets its score when it comes.

        Raises:
            InvalidRequest: the service cannot score one of them.
            CallFailed: no replica scored all of them.
        """
        self._upstream.budget.earn()
        round_ = 0
        while True:
            try:
                return await self._any_replica(release, call, wanted, deadline)
            except CallFailed as error:
                if error.result not in _FULL:
                    raise
                await self._wait(error, round_, deadline)
                round_ += 1

    def call(self, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline) -> ScoreCall:
        """What every call of one job has in common."""
        turns = [Turn(role=turn["role"], content=turn["content"]) for turn in context]
        return ScoreCall(self._upstream, release.reward, turns, deadline)

    def give_up(self, deadline: Deadline, *, others: int) -> Deadline:
        """When to leave a replica that says nothing: in time to ask another one, where there is one."""
        if others <= 0:
            return deadline
        return Deadline.after(min(self._patience, deadline.remaining() / 2))

    async def _any_replica(
        self, release: ReleaseTarget, call: ScoreCall, wanted: Sequence[Wanted], deadline: Deadline
    ) -> None:
        failure = CallFailed(CallResult.UNREACHABLE, "is nowhere to be found")
        replicas = self._upstream.replicas
        ordered = replicas.order(release.reward_endpoints)
        for attempt, endpoint in enumerate(ordered * 2 if len(ordered) == 1 else ordered):
            if attempt and not self._try_again(failure, deadline, alone=len(ordered) == 1):
                break
            give_up = self.give_up(deadline, others=len(ordered) - attempt - 1)
            first = self._one(endpoint, call, wanted, deadline, give_up)
            spare = next((other for other in ordered[attempt + 1 :] if not replicas.is_open(other)), None)
            try:
                if self._hedge is None or spare is None:
                    return await first
                return await hedged(first, partial(self._second, spare, call, wanted, deadline), self._hedge)
            except CallFailed as error:
                failure = error
        raise failure

    async def _one(
        self, endpoint: str, call: ScoreCall, wanted: Sequence[Wanted], deadline: Deadline, give_up: Deadline
    ) -> None:
        """Ask one service, and note what it is good for."""
        replicas, started = self._upstream.replicas, time.monotonic()
        try:
            await call.ask(endpoint, [one for one in wanted if one.waiting], give_up)
        except CallFailed as error:
            if error.result not in _FULL and at_fault(error.result, deadline, started):
                replicas.shun(endpoint, hung=error.result is CallResult.TIMEOUT and not deadline.expired())
            elif error.result in _FULL:
                replicas.answered(endpoint)
            if any(one.waiting for one in wanted):  # else it failed with everything said
                raise
        else:
            replicas.well(endpoint)

    def _second(
        self, endpoint: str, call: ScoreCall, wanted: Sequence[Wanted], deadline: Deadline
    ) -> Coroutine[Any, Any, None] | None:
        """A call beside one that takes long, where the retry budget allows it."""
        if not self._upstream.may_retry():
            return None
        self._upstream.metrics.hedges.labels(self._upstream.role).inc()
        return self._one(endpoint, call, wanted, deadline, deadline)

    def _try_again(self, failure: CallFailed, deadline: Deadline, *, alone: bool) -> bool:
        """Whether another attempt makes sense: a single replica only when it cut a connection, e.g. an idle one."""
        if failure.result is CallResult.LATE or deadline.expired():
            return False
        if alone and failure.result is not CallResult.BROKEN:
            return False
        # One that kept quiet has cost its time already: asking another one for it is no storm.
        if failure.result is not CallResult.TIMEOUT and not self._upstream.may_retry():
            return False
        self._count_retry()
        return True

    def _count_retry(self) -> None:
        self._upstream.metrics.upstream_retries.labels(self._upstream.role).inc()

    async def _wait(self, failure: CallFailed, round_: int, deadline: Deadline) -> None:
        """Until the service may have room: what it asked for, else longer each round, spread so that we come apart.

        Raises:
            CallFailed: that would be after the deadline.
        """
        own = min(_FIRST_WAIT_SECONDS[failure.result] * 2 ** min(round_, _DOUBLINGS), _LONGEST_WAIT_SECONDS)
        seconds = (failure.retry_after or own) * random.uniform(1.0, 1.25)
        if seconds >= deadline.remaining():
            raise failure
        await asyncio.sleep(seconds)
        self._count_retry()


class HttpSession:
    """`ScoringSession` of calls that have nothing to do with each other.

    Args:
        scorer: makes them.
        release: who scores.
        context: the turns that candidates answer.
        deadline: the job's.
    """

    def __init__(
        self, scorer: HttpScorer, release: ReleaseTarget, context: Sequence[ChatMessage], deadline: Deadline
    ) -> None:
        self._scorer, self._release, self._deadline = scorer, release, deadline
        self._call = scorer.call(release, context, deadline)
        self._gathered: list[Wanted] = []
        self._under_way: set[asyncio.Task[None]] = set()

    def piece(self, index: int, text: str) -> None:
        """Nothing: the whole candidate is sent when it is complete."""

    async def peek(self, index: int) -> float | None:
        """None: nothing was sent yet."""
        return None

    def drop(self, index: int) -> None:
        """Nothing: nothing was sent."""

    async def score(self, index: int, candidate: str) -> float:
        """See `ScoringSession`; of candidates that went together, the last one to be cancelled takes the call along."""
        wanted = Wanted(candidate)
        self._gathered.append(wanted)
        if len(self._gathered) == 1:  # whoever else has ended in this turn of the loop comes before `_send` does
            asyncio.get_running_loop().call_soon(self._send)
        return await wanted.score

    async def close(self) -> None:
        """Give up what is not scored."""
        for one in self._gathered:
            one.score.cancel()
        calls = set(self._under_way)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls)

    def _send(self) -> None:
        gathered, self._gathered = [one for one in self._gathered if one.waiting], []
        for first in range(0, len(gathered), self._scorer.most_together):
            self._begin(gathered[first : first + self._scorer.most_together])

    def _begin(self, wanted: Sequence[Wanted]) -> None:
        """Ask for these; when nobody waits for any of them any more, that ends."""
        task = asyncio.create_task(self._deliver(wanted), name="score")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

        def left(score: asyncio.Future[float]) -> None:
            if score.cancelled() and not any(one.waiting for one in wanted):
                task.cancel()

        for one in wanted:
            one.score.add_done_callback(left)

    async def _deliver(self, wanted: Sequence[Wanted]) -> None:
        """Each gets its score, or its own failure."""
        try:
            await self._scorer.ask(self._release, self._call, wanted, self._deadline)
        except (InvalidRequest, CallFailed) as error:
            left = [one for one in wanted if one.waiting]
            for one in left:
                if len(wanted) > 1 and _may_be_anothers(error):
                    self._begin([one])
                else:
                    one.fail(error if isinstance(error, InvalidRequest) else _declared(error, self._deadline))
        except asyncio.CancelledError:
            for one in wanted:
                one.score.cancel()
            raise
        except Exception as bug:
            for one in wanted:
                one.fail(bug)


def _may_be_anothers(error: InvalidRequest | CallFailed) -> bool:
    """Whether what became of a call for several may be the fault of one of them."""
    return isinstance(error, InvalidRequest) or error.result is CallResult.BROKEN


def _declared(failure: CallFailed, deadline: Deadline) -> Unavailable | DeadlineExceeded:
    if failure.result is CallResult.LATE or (failure.result is CallResult.TIMEOUT and deadline.expired()):
        return DeadlineExceeded(f"the reward service {failure}; send a larger deadline_seconds", should_retry=False)
    overloaded = failure.result is CallResult.OVERLOADED
    return Unavailable(
        f"the reward service {failure}; try again shortly",
        code=ErrorCode.REWARD_OVERLOADED if overloaded else ErrorCode.REWARD_UNAVAILABLE,
        retry_after=failure.retry_after or 2.0,
    )
