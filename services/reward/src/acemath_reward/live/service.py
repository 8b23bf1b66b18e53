"""Opens live connections' sessions, counts them, and gives them time when the service stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from acemath_core.deadline import Deadline
from acemath_core.errors import ErrorCode, InvalidRequest, ServiceError, Unavailable
from acemath_core.prompts import ChatMessage, reward_context
from acemath_prompts import TemplateError
from acemath_reward.batcher import Batcher
from acemath_reward.encoding import Vocabulary, check_text
from acemath_reward.live.frames import Open, ServerFrame
from acemath_reward.live.growing import LiveContext
from acemath_reward.live.session import ConnectionLimits, LiveScoring
from acemath_reward.metrics import RewardMetrics
from acemath_reward.scoring import ScoreService
from acemath_reward.settings import RewardSettings

_LAST_WORDS_SECONDS = 2.0  # for connections to tell their clients that the service stops


class LiveService:
    """Live scoring behind its wire.

    Args:
        settings: limits.
        scores: the service whose versions, admission and tokenisers it shares.
        batcher: computes.
        metrics: the service's instruments.

    Attributes:
        stopping: set when connections must end now.
    """

    def __init__(
        self, settings: RewardSettings, scores: ScoreService, batcher: Batcher, metrics: RewardMetrics
    ) -> None:
        self._settings, self._scores, self._batcher, self._metrics = settings, scores, batcher, metrics
        self._limits = ConnectionLimits(settings.live_candidates, settings.live_content_bytes, settings.max_text_chars)
        self._open, self._draining = 0, False
        self._none_open = asyncio.Event()
        self._none_open.set()
        self.stopping = asyncio.Event()

    def deadline(self, opening: Open) -> Deadline:
        """When a connection ends at the latest."""
        longest = self._settings.live_deadline_seconds
        return Deadline.after(min(opening.deadline or longest, longest))

    @asynccontextmanager
    async def opened(
        self, opening: Open, deadline: Deadline, send: Callable[[ServerFrame | ServiceError], None]
    ) -> AsyncIterator[LiveScoring]:
        """A connection's scoring; leaving the block frees it.

        Raises:
            InvalidRequest, TooLarge: the conversation cannot be scored.
            Conflict: (`model_not_served`).
            Unavailable: (`reward_overloaded`, `not_ready`, `draining`).
            DeadlineExceeded: it passed while the conversation waited to be tokenised.
        """
        if self._draining:
            raise self.draining()
        _check(opening, self._settings.max_text_chars)
        with self._scores.serving(opening.model) as (_, served), self._counted():
            context = await self._scores.off_loop(lambda: _context(opening, served.vocabulary), deadline)
            scoring = LiveScoring(
                served.engine,
                context,
                deadline,
                self._batcher,
                self._limits,
                self._metrics,
                send,
                self._scores.off_loop,
            )
            try:
                scoring.start()
                yield scoring
            finally:
                scoring.close()

    async def drain(self, seconds: float) -> None:
        """Take no new connections, give the open ones time to finish, then tell them to end."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none_open.wait()
        self.stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._none_open.wait()

    def draining(self) -> Unavailable:
        """What a connection is told when the service stops."""
        return Unavailable("the reward service is stopping; try another replica", code=ErrorCode.DRAINING)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        self._none_open.clear()
        self._metrics.live_sessions.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self._metrics.live_sessions.set(self._open)
            if not self._open:
                self._none_open.set()


def _check(opening: Open, max_chars: int) -> None:
    for index, turn in enumerate(opening.messages):
        check_text(f"messages.{index}", turn.content, max_chars)
    if opening.messages[-1].role != "user":
        raise InvalidRequest("the last of messages must be the user's turn that candidates answer", param="messages")


def _context(opening: Open, vocabulary: Vocabulary) -> LiveContext:
    turns: list[ChatMessage] = [{"role": turn.role, "content": turn.content} for turn in opening.messages]
    messages, encoder = reward_context(turns), vocabulary.encoder
    try:
        prompt, turn = encoder.encode_prompt(messages), encoder.open_turn(messages)
        return LiveContext(vocabulary, tuple(prompt), turn, tuple(encoder.turn_end(messages)))
    except TemplateError as error:
        message = f"the model's chat template refuses messages: {error}"
        raise InvalidRequest(message, param="messages") from error
