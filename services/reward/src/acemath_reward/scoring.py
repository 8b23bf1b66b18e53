"""One score call from its body to its scores; what the routes render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from acemath_core.deadline import Deadline
from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, TooLarge, Unavailable
from acemath_core.wire import ScoreItem, ScoreRequest, ScoreTimings
from acemath_reward.batcher import Batcher
from acemath_reward.encoding import EncodedCall, Vocabulary, check_sizes, encode
from acemath_reward.metrics import RewardMetrics
from acemath_reward.settings import RewardSettings
from acemath_reward.tickets import Engine, Ticket
from acemath_reward.versions import Served, VersionSlot

_T = TypeVar("_T")


class Versions(Protocol):
    """`Reconciler`, as far as scoring needs it."""

    def choose(self, version: str | None) -> VersionSlot:
        """The slot that serves a version."""
        ...


class Work(Protocol):
    """What a caller wants scored, in whichever shape it came."""

    @property
    def model(self) -> str | None:
        """The name@version asked for; None means the active one."""
        ...

    @property
    def param(self) -> str:
        """The field of the body that holds the candidates."""
        ...

    def check(self, max_chars: int) -> None:
        """Refuse texts over `max_chars`, at once. Raises `TooLarge` or `InvalidRequest`."""
        ...

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """Its token ids; blocks, and is called in a thread. Raises `InvalidRequest`."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """The body of `POST /v1/score` as `Work`."""

    request: ScoreRequest
    param: str = "candidates"

    @property
    def model(self) -> str | None:
        """The version asked for."""
        return self.request.model

    def check(self, max_chars: int) -> None:
        """See `check_sizes`."""
        check_sizes(self.request, max_chars)

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """See `encoding.encode`."""
        return encode(self.request, vocabulary)


class Scoring:
    """A call that has been queued.

    Attributes:
        model: name@version that scores it.
        vocabulary: that version's.
        usage: tokens of the call.

    Made by `ScoreService`; `times` are its monotonic start and the seconds until it was tokenised.
    """

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        call: EncodedCall,
        ticket: Ticket,
        metrics: RewardMetrics,
        times: tuple[float, float],
    ) -> None:
        self.model, self.vocabulary, self.usage = model, vocabulary, call.usage
        self._call, self._ticket, self._metrics = call, ticket, metrics
        self._started, self._tokenize_seconds = times

    async def items(self) -> AsyncIterator[list[ScoreItem]]:
        """The scores, batch by batch; every candidate once, a duplicate together with the one it equals.

        Raises:
            DeadlineExceeded: the call's deadline passed.
            ServiceError: the engine failed on this call, or the service is stopping.
        """
        try:
            async for part in self._ticket.parts():
                yield self._expand(dict(part.scores))
        except DeadlineExceeded:
            self._metrics.rejections.labels("deadline").inc()
            raise

    def _expand(self, scores: dict[int, float]) -> list[ScoreItem]:
        return [
            ScoreItem(index=index, score=scores[source], tokens=self._call.sequences[source].tokens)
            for index, source in enumerate(self._call.source)
            if source in scores
        ]

    def timings(self) -> ScoreTimings:
        """Where the time went so far."""
        return ScoreTimings(
            tokenize_seconds=self._tokenize_seconds,
            queue_seconds=self._ticket.queue_seconds or 0.0,
            compute_seconds=self._ticket.compute_seconds,
            total_seconds=time.monotonic() - self._started,
        )


class ScoreService:
    """Admits, encodes and queues calls.

    Args:
        settings: limits.
        versions: which versions serve.
        batcher: scores.
        metrics: the service's instruments.
    """

    def __init__(self, settings: RewardSettings, versions: Versions, batcher: Batcher, metrics: RewardMetrics) -> None:
        self._settings, self._versions, self._batcher, self._metrics = settings, versions, batcher, metrics
        self._calls = 0
        self._encoders = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="reward-tokenize")

    def close(self) -> None:
        """Let the tokenizer threads end."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def scoring(self, request: ScoreRequest, deadline: Deadline) -> AbstractAsyncContextManager[Scoring]:
        """Queue a `POST /v1/score`; see `queued`."""
        return self.queued(Candidates(request), deadline)

    @asynccontextmanager
    async def queued(self, work: Work, deadline: Deadline) -> AsyncIterator[Scoring]:
        """Queue a call; leaving the block takes out of the queue what was not scored.

        Raises:
            InvalidRequest, TooLarge: the caller's mistake, naming the candidate.
            Conflict: (`model_not_served`).
            Unavailable: (`reward_overloaded`, `not_ready`, `draining`).
            DeadlineExceeded: it passed while the call waited to be tokenised.
        """
        started = time.monotonic()
        with self.serving(work.model) as (model, served):
            call = await self._encode(work, served.vocabulary, deadline)
            tokenized = time.monotonic() - started
            self._metrics.tokenize_seconds.observe(tokenized)
            self._metrics.duplicates.inc(call.duplicates)
            ticket = self._submit(work, served.engine, call, deadline)
            try:
                yield Scoring(model, served.vocabulary, call, ticket, self._metrics, (started, tokenized))
            finally:
                self._batcher.cancel(ticket)

    @contextmanager
    def serving(self, model: str | None) -> Iterator[tuple[str, Served]]:
        """The version that serves a call, name@version first; it is kept, and the call counted, for the block.

        Raises:
            Conflict: (`model_not_served`).
            Unavailable: (`reward_overloaded`, `not_ready`).
        """
        slot = self._versions.choose(model)
        assert slot.served is not None, "choose gives serving slots only"
        with slot.in_use(), self._admitted():
            yield str(slot.ref), slot.served

    async def off_loop(self, work: Callable[[], _T], deadline: Deadline) -> _T:
        """The result of `work`, run on a tokeniser's thread. Raises `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.get_running_loop().run_in_executor(self._encoders, work)
        except TimeoutError as error:
            self._metrics.rejections.labels("deadline").inc()
            raise DeadlineExceeded("the call's deadline passed while it waited to be tokenised") from error

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._calls >= self._settings.max_calls:
            self._metrics.rejections.labels("too_many_calls").inc()
            raise Unavailable(
                f"the reward service has {self._calls} calls under way; try again later",
                code=ErrorCode.REWARD_OVERLOADED,
                retry_after=self._batcher.retry_after(),
            )
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _submit(self, work: Work, engine: Engine, call: EncodedCall, deadline: Deadline) -> Ticket:
        try:
            return self._batcher.submit(engine, call.sequences, deadline)
        except TooLarge as error:
            raise TooLarge(error.message, param=work.param) from error

    async def _encode(self, work: Work, vocabulary: Vocabulary, deadline: Deadline) -> EncodedCall:
        try:
            work.check(self._settings.max_text_chars)
            return await self.off_loop(partial(work.encode, vocabulary), deadline)
        except TooLarge:
            self._metrics.rejections.labels("text_too_large").inc()
            raise
        except InvalidRequest as error:
            too_long = error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
            self._metrics.rejections.labels("too_long" if too_long else "bad_tokens").inc()
            raise
