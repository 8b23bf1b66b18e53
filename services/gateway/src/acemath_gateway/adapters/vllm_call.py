"""One streaming call to a vLLM server: its chunks as events, and what they say of the server.

What vLLM sends there, read in its `entrypoints/openai/completion/serving.py`:

* A chunk carries one choice: its `index`, the text and (`return_token_ids`) the ids that this chunk adds, and a
  `finish_reason` on its last one: stop, length, or abort (the server is stopping), error, repetition. The first chunk
  of a choice also repeats the prompt's ids. `stream_interval` bundles that many tokens into one chunk; the first and
  the last are never held back.
* `model` is in every chunk; with `include_usage` the fingerprint is only in the last one, beside the usage.
* A failure after the first byte is an `{"error": …}` event followed by `[DONE]`, under status 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest
from acemath_gateway.adapters.attempts import at_fault
from acemath_gateway.adapters.http import CallFailed, translated
from acemath_gateway.adapters.replica_turns import Turn
from acemath_gateway.adapters.sse import SseError, SseReader
from acemath_gateway.adapters.transport import Answer
from acemath_gateway.adapters.vllm_stream import Chunk, Growing, parse
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import CandidateFailed, PolicyEvent, ReleaseTarget, Sampling

_READ_OUT_SECONDS = 0.1


class Call:
    """One streaming call to one server.

    Args:
        turn: whose turn it is, and how long it may keep quiet.
        release: which version is to answer.
        sampling: what it is asked for.
        deadline: the request's; the server is told of it.

    Attributes:
        begun: whether anything came of it.
    """

    def __init__(self, turn: Turn, release: ReleaseTarget, sampling: Sampling, deadline: Deadline) -> None:
        self._turn, self._upstream, self._patience = turn, turn.upstream, turn.patience
        self._version, self._sampling, self._deadline = release.policy, sampling, deadline
        self._candidates = [Growing(index, sampling.max_tokens) for index in range(sampling.n)]
        self.begun = False

    async def events(self, body: dict[str, Any]) -> AsyncGenerator[PolicyEvent, None]:
        """Everything this server says, and what it leaves unsaid as failed candidates; raises `CallFailed`."""
        started, result = time.monotonic(), CallResult.CANCELLED
        metrics, role = self._upstream.metrics, self._upstream.role
        try:
            with self._upstream.replicas.working(self._turn.endpoint, self._sampling.n):
                async with contextlib.aclosing(self._chunks(body)) as chunks:
                    async for chunk in chunks:
                        for event in self._take(chunk):
                            if not self.begun:
                                self._turn.answered()
                            self.begun = self._turn.begun = True
                            self._patience.tokens_came()
                            yield event
            result = CallResult.OK
            self._upstream.replicas.well(self._turn.endpoint)
        except InvalidRequest:
            result = CallResult.REFUSED
            self._turn.answered()
            raise
        except CallFailed as error:
            result = error.result
            self._shun(result, started)
            if result is CallResult.MISMATCH:
                metrics.version_mismatch.labels(role).inc()
            if result is CallResult.MISMATCH or not self.begun:
                raise
            for candidate in self._open():
                yield CandidateFailed(candidate.index, error.result.value)
        finally:
            self._upstream.count(result, started)

    def _shun(self, result: CallResult, started: float) -> None:
        """Ask this server last for a while; one that was still at it when the deadline came is not at fault."""
        late = result is CallResult.TIMEOUT and self._deadline.expired()
        if not (late and self._turn.begun) and at_fault(result, self._deadline, started):
            self._turn.shun(hung=result is CallResult.TIMEOUT and not late)

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        fingerprint: str | None = None
        url, give_up = f"{self._turn.endpoint}/v1/completions", self._patience.give_up()
        with contextlib.closing(await self._upstream.stream(url, body, self._deadline, give_up=give_up)) as answer:
            async with contextlib.aclosing(self._data(answer)) as events:
                async for data in events:
                    chunk = parse(data)
                    fingerprint = chunk.system_fingerprint or fingerprint
                    self._check_version(chunk.model)
                    yield chunk
        if self._open():
            raise CallFailed(CallResult.BROKEN, "ended its stream before every candidate had ended")
        self._check_version(fingerprint)

    async def _data(self, answer: Answer) -> AsyncGenerator[str, None]:
        """The data of each event before `[DONE]`."""
        if not (answer.header("content-type") or "").startswith("text/event-stream"):
            raise CallFailed(CallResult.BROKEN, "answered with something other than an event stream")
        reader = SseReader()
        pieces = answer.pieces()
        while True:
            for data in await self._next_events(reader, pieces):
                if data == "[DONE]":
                    await _read_out(pieces)
                    return
                yield data

    async def _next_events(self, reader: SseReader, pieces: AsyncIterator[bytes]) -> list[str]:
        """What the next bytes complete; each wait ends when patience does, however slowly the bytes drip."""
        with translated(self._deadline):
            async with self._patience.limit():
                chunk = await anext(pieces, None)
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


async def _read_out(pieces: AsyncIterator[bytes]) -> None:
    """Read to the end of the body, which is due with its last event: only then can the connection be used again."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_READ_OUT_SECONDS):
            await anext(pieces, None)
