"""Candidates from stock vLLM 0.32: one streaming `POST /v1/completions` with n=N, or N of them with n=1.

| adapter          | method           | for                                                                        |
|------------------|------------------|----------------------------------------------------------------------------|
| A: one call, n=N | `generate`       | whatever stops no single candidates: one prompt, one connection            |
| B: N calls, n=1  | `generate_apart` | candidates that may be ended one by one: closing a call ends its candidate |

What vLLM does there, read in its `entrypoints/openai/completion/serving.py` (the rest of it in `vllm_call`):

* `prompt` may be one list of token ids, also with n>1; candidate i is sampled with `seed + i`; n>1 with temperature 0
  is a 400. Without `max_tokens` room for all, it silently cuts `max_tokens`, so the solver checks the room before.
* Sampling fields that are left out take the checkpoint's `generation_config.json`, so all of them are sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, Unavailable
from acemath_gateway.adapters.attempts import Patience, SharedPatience
from acemath_gateway.adapters.candidate_calls import CandidateCalls
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.adapters.replica_turns import Turns
from acemath_gateway.adapters.vllm_call import Call
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import PolicyEvent, ReleaseTarget, Sampling

STREAM_INTERVAL = 16
"""Tokens in one event: fewer, larger events cost both processes less; a finished candidate is never held back by it."""

_RETRY_AFTER_SECONDS = 2.0


class VllmPolicy:
    """`PolicyPort` on vLLM servers; a request goes to the least loaded one, and to the next while nothing has come.

    Args:
        upstream: connections to the servers.
        stream_interval: tokens in one event.
        first_token_seconds: longest wait for the first token while there is another server to ask; never more than
            half of what is left of the request's time.
        between_tokens_seconds: longest silence of a stream that has begun.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        stream_interval: int = STREAM_INTERVAL,
        first_token_seconds: float = 60.0,
        between_tokens_seconds: float = 45.0,
    ) -> None:
        self._upstream = upstream
        self._interval = stream_interval
        self._first_token, self._between_tokens = first_token_seconds, between_tokens_seconds

    def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncGenerator[PolicyEvent, None]:
        """Events of the candidates of one call; see `PolicyPort`.

        A connection that breaks or falls silent after the first event ends with `CandidateFailed` for what was not
        finished.

        Raises:
            Unavailable: (`policy_unavailable`) no replica gave anything, or one gave another version's work: then
                nothing that came before may be used either.
            DeadlineExceeded: nothing came before the deadline.
            InvalidRequest: vLLM refused the request.
        """
        turns = self._turns(release, deadline, Patience)
        return self._asked(turns, release, prompt_ids, sampling, deadline, partial(_declared, deadline=deadline))

    @contextlib.asynccontextmanager
    async def generate_apart(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncIterator[CandidateCalls]:
        """Candidates by a call each, all at once and at the same replica, for its prefix cache; see `PolicyPort`.

        A call of which nothing came is made again at the next replica, as the whole request of `generate` is. A replica
        is silent when none of its calls says anything: some of them may wait for their turn in vLLM's queue.
        """

        def one(index: int) -> AsyncGenerator[PolicyEvent, None]:
            alone = replace(sampling, n=1, seed=sampling.seed + index)
            return self._asked(turns, release, prompt_ids, alone, deadline, lambda failure: failure)

        turns = self._turns(release, deadline, SharedPatience)
        calls = CandidateCalls(one, sampling.n, partial(_declared, deadline=deadline))
        try:
            yield calls
        finally:
            await calls.close()

    async def _asked(
        self,
        turns: Turns,
        release: ReleaseTarget,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        deadline: Deadline,
        said: Callable[[CallFailed], Exception],
    ) -> AsyncGenerator[PolicyEvent, None]:
        """Events of one call, at whichever replica something comes of it; raises what is `said` of its last failure."""
        failure, attempt = CallFailed(CallResult.UNREACHABLE, "is nowhere to be found"), 0
        while (turn := turns.of(attempt, failure)) is not None:
            call = Call(turn, release, sampling, deadline)
            try:
                async with contextlib.aclosing(call.events(self._body(release, prompt_ids, sampling))) as events:
                    async for event in events:
                        yield event
                return
            except CallFailed as error:
                failure = error
                if call.begun:
                    break
            attempt += 1
        raise said(failure)

    def _turns(
        self, release: ReleaseTarget, deadline: Deadline, patience: Callable[[Deadline, float, float], Patience]
    ) -> Turns:
        def how_long(others: int) -> Patience:
            """With another server to ask, not so long that it could not be asked."""
            left = deadline.remaining()
            first = min(self._first_token, left / 2) if others > 0 else left
            return patience(deadline, first, self._between_tokens)

        return Turns(self._upstream, release.policy_endpoints, deadline, how_long)

    def _body(self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        return {
            "model": release.policy,
            "prompt": list(prompt_ids),
            "n": sampling.n,
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
            "stream": True,
            "stream_options": {"include_usage": True},
            "stream_interval": self._interval,
            "return_token_ids": True,
        }


def _declared(failure: CallFailed, deadline: Deadline) -> Unavailable | DeadlineExceeded:
    if failure.result is CallResult.TIMEOUT and deadline.expired():
        return DeadlineExceeded(
            "the policy gave nothing before the deadline; send a larger deadline_seconds", should_retry=False
        )
    return Unavailable(
        f"the policy {failure}; try again shortly",
        code=ErrorCode.POLICY_UNAVAILABLE,
        retry_after=failure.retry_after or _RETRY_AFTER_SECONDS,
    )
