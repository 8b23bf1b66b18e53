"""Candidates from stock vLLM 0.32: one streaming `POST /v1/completions` with n=N (adapter A of the contracts).

What vLLM does there, read in its `entrypoints/openai/completion/serving.py`:

* `prompt` may be one list of token ids, also with n>1; candidate i is sampled with `seed + i`; n>1 with temperature 0
  is a 400. Without `max_tokens` room for all, it silently cuts `max_tokens`, so the solver checks the room before.
* A chunk carries one choice: its `index`, the text and (`return_token_ids`) the ids that this chunk adds, and a
  `finish_reason` on its last one: stop, length, or abort (the server is stopping), error, repetition. The first chunk
  of a choice also repeats the prompt's ids. `stream_interval` bundles that many tokens into one chunk; the first and
  the last are never held back.
* `model` is in every chunk; with `include_usage` the fingerprint is only in the last one, beside the usage.
* A failure after the first byte is an `{"error": …}` event followed by `[DONE]`, under status 200.
* Sampling fields that are left out take the checkpoint's `generation_config.json`, so all of them are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import httpx

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.adapters.attempts import Patience
from acemath_gateway.adapters.http import CallFailed, Upstream, translated
from acemath_gateway.adapters.sse import SseError, SseReader
from acemath_gateway.adapters.vllm_stream import Chunk, Growing, parse
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import (
    CandidateFailed,
    PolicyEvent,
    ReleaseTarget,
    Sampling,
)

STREAM_INTERVAL = 16
"""Tokens in one event: fewer, larger events cost both processes less; a finished candidate is never held back by it."""

_RETRY_AFTER_SECONDS = 2.0
_READ_OUT_SECONDS = 0.1


class VllmPolicy:
    """`PolicyPort` on vLLM servers; each call goes to the least loaded one, and to the next while nothing has come.

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

    async def generate(
        self, release: ReleaseTarget, prompt_ids: Sequence[int], sampling: Sampling, deadline: Deadline
    ) -> AsyncGenerator[PolicyEvent, None]:
        """Events of the candidates; see `PolicyPort`.

        A connection that breaks or falls silent after the first event ends with `CandidateFailed` for what was not
        finished.

        Raises:
            Unavailable: (`policy_unavailable`) no replica gave anything, or one gave another version's work: then
                nothing that came before may be used either.
            DeadlineExceeded: nothing came before the deadline.
            InvalidRequest: vLLM refused the request.
        """
        upstream = self._upstream
        upstream.budget.earn()
        failure = CallFailed(CallResult.UNREACHABLE, "is nowhere to be found")
        ordered = upstream.replicas.order(release.policy_endpoints)
        for attempt, endpoint in enumerate(_attempts(ordered)):
            if attempt and not (_may_help(failure, deadline, ordered) and upstream.may_retry()):
                break
            if attempt:
                upstream.metrics.upstream_retries.labels(upstream.role).inc()
            patience = self._patience(deadline, others=len(ordered) - attempt - 1)
            call = _Call(upstream, endpoint, release, sampling, deadline, patience)
            try:
                async with contextlib.aclosing(call.events(self._body(release, prompt_ids, sampling))) as events:
                    async for event in events:
                        yield event
                return
            except CallFailed as error:
                failure = error
                if call.begun:
                    break
        raise _declared(failure, deadline)

    def _patience(self, deadline: Deadline, *, others: int) -> Patience:
        """How long a server may say nothing: with another one to ask, not so long that it could not be asked."""
        left = deadline.remaining()
        first = min(self._first_token, left / 2) if others > 0 else left
        return Patience(deadline, first, self._between_tokens)

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


class _Call:
    """One streaming call to one server."""

    def __init__(
        self,
        upstream: Upstream,
        endpoint: str,
        release: ReleaseTarget,
        sampling: Sampling,
        deadline: Deadline,
        patience: Patience,
    ) -> None:
        self._upstream, self._endpoint, self._version = upstream, endpoint, release.policy
        self._sampling, self._deadline, self._patience = sampling, deadline, patience
        self._candidates = [Growing(index, sampling.max_tokens) for index in range(sampling.n)]
        self.begun = False

    async def events(self, body: dict[str, Any]) -> AsyncGenerator[PolicyEvent, None]:
        """Everything this server says, and what it leaves unsaid as failed candidates; raises `CallFailed`."""
        started, result = time.monotonic(), CallResult.CANCELLED
        metrics, role = self._upstream.metrics, self._upstream.role
        try:
            with self._upstream.replicas.working(self._endpoint, self._sampling.n):
                async with contextlib.aclosing(self._chunks(body)) as chunks:
                    async for chunk in chunks:
                        for event in self._take(chunk):
                            if not self.begun:
                                self._upstream.replicas.answered(self._endpoint)
                            self.begun = True
                            self._patience.tokens_came()
                            yield event
            result = CallResult.OK
            self._upstream.replicas.well(self._endpoint)
        except InvalidRequest:
            result = CallResult.REFUSED
            self._upstream.replicas.answered(self._endpoint)
            raise
        except CallFailed as error:
            result = error.result
            self._shun(result)
            if result is CallResult.MISMATCH:
                metrics.version_mismatch.labels(role).inc()
            if result is CallResult.MISMATCH or not self.begun:
                raise
            for candidate in self._open():
                yield CandidateFailed(candidate.index, error.result.value)
        finally:
            metrics.upstream_calls.labels(role, result).inc()
            metrics.upstream_seconds.labels(role).observe(time.monotonic() - started)

    def _shun(self, result: CallResult) -> None:
        """Ask this server last for a while; one that was still at it when the deadline came is not at fault."""
        late = result is CallResult.TIMEOUT and self._deadline.expired()
        if not (late and self.begun):
            self._upstream.replicas.shun(self._endpoint, hung=result is CallResult.TIMEOUT and not late)

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        fingerprint: str | None = None
        async with (
            self._upstream.stream(
                f"{self._endpoint}/v1/completions", body, self._deadline, give_up=self._patience.give_up()
            ) as response,
            contextlib.aclosing(self._data(response)) as events,
        ):
            async for data in events:
                chunk = parse(data)
                fingerprint = chunk.system_fingerprint or fingerprint
                self._check_version(chunk.model)
                yield chunk
        if self._open():
            raise CallFailed(CallResult.BROKEN, "ended its stream before every candidate had ended")
        self._check_version(fingerprint)

    async def _data(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        """The data of each event before `[DONE]`."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise CallFailed(CallResult.BROKEN, "answered with something other than an event stream")
        reader = SseReader()
        async with contextlib.aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as chunks:
            while True:
                for data in await self._next_events(reader, chunks):
                    if data == "[DONE]":
                        await _read_out(chunks)
                        return
                    yield data

    async def _next_events(self, reader: SseReader, chunks: AsyncGenerator[bytes, None]) -> list[str]:
        """What the next bytes complete; each wait ends when patience does, however slowly the bytes drip."""
        with translated(self._deadline):
            async with asyncio.timeout(self._patience.give_up().remaining()):
                chunk = await anext(chunks, None)
        if chunk is None:
            raise CallFailed(CallResult.BROKEN, "ended its stream without [DONE]")
        try:
            return reader.feed(chunk)
        except SseError as error:
            raise CallFailed(CallResult.BROKEN, str(error)) from error

    def _take(self, chunk: Chunk) -> list[PolicyEvent]:
        taken: list[PolicyEvent] = []
        for choice in chunk.choices:
            if not 0 <= choice.index < len(self._candidates):
                raise CallFailed(CallResult.BROKEN, f"sent candidate {choice.index}, which nobody asked for")
            taken += self._candidates[choice.index].take(choice)
        return taken

    def _open(self) -> list[Growing]:
        return [candidate for candidate in self._candidates if not candidate.ended]

    def _check_version(self, stamped: str | None) -> None:
        if stamped != self._version:
            raise CallFailed(CallResult.MISMATCH, f"is stamped {stamped!r}, the lease is on {self._version!r}")


async def _read_out(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read to the end of the body, which is due with its last event: only then can the connection be used again."""
    with contextlib.suppress(httpx.TransportError, TimeoutError):
        async with asyncio.timeout(_READ_OUT_SECONDS):
            await anext(chunks, None)


def _attempts(ordered: list[str]) -> list[str]:
    """Every replica once; a single one twice: the first time the connection may just have been closed."""
    return ordered * 2 if len(ordered) == 1 else ordered


def _may_help(failure: CallFailed, deadline: Deadline, ordered: Sequence[str]) -> bool:
    """Whether asking once more after this failure makes sense."""
    if deadline.expired():
        return False
    return len(ordered) > 1 or failure.result is CallResult.BROKEN


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
