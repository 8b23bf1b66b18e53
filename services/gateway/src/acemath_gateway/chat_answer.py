"""`POST /v1/chat/completions`, the answer: an outcome as OpenAI's chat completion, whole or in chunks.

A candidate's text is given in one chunk: which candidate is the answer is known only when all are scored. What OpenAI
has no word for (score, versions, degradation, candidates) stands under `acemath`, which its clients keep and ignore.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Literal

from acemath_core.wire import (
    DegradedReason,
    FinishReason,
    Selection,
    ServedModels,
    SolvedCandidate,
    SolveTimings,
    StopReason,
    Usage,
    Wire,
)
from acemath_gateway.chat_wire import MODEL
from acemath_gateway.jobs import Outcome, SolvedItem
from acemath_gateway.solve_wire import candidates_of, timings_of, usage_of


class ChatExtension(Wire):
    """`acemath` in an answer: what a `Solution` says and a chat completion cannot."""

    answer: str | None
    score: float | None
    scores: list[float | None]
    selection: Selection
    stop_reason: StopReason
    degraded: bool
    degraded_reason: DegradedReason | None
    release: str
    models: ServedModels
    n_requested: int
    n_generated: int
    n_scored: int
    n_rejected: int
    candidates: list[SolvedCandidate]
    timings: SolveTimings


class AnswerMessage(Wire):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Wire):
    """One of the n best candidates; the first is the answer."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Wire):
    """A chat completion as OpenAI's clients read it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = MODEL
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    acemath: ChatExtension


class ChatAnswer:
    """One outcome, ready to be given whole or in chunks.

    Args:
        outcome: what became of the job.
        n: choices the caller wants.
        detail: `acemath.candidates` of the request: none, scores or full.
        queue_seconds: how long the job waited for its places.
    """

    def __init__(self, outcome: Outcome, *, n: int, detail: str, queue_seconds: float) -> None:
        self._outcome = outcome
        self._given: tuple[SolvedItem, ...] = outcome.ranked[:n]
        self._detail, self._queue_seconds = detail, queue_seconds
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    @property
    def whole(self) -> bool:
        """Whether nothing about it is degraded."""
        return self._outcome.degraded_reason is None

    def completion(self) -> ChatCompletion:
        """The whole answer in one body."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            system_fingerprint=self._outcome.target.release,
            choices=[
                Choice(index=place, message=AnswerMessage(content=item.text), finish_reason=item.finish_reason)
                for place, item in enumerate(self._given)
            ],
            usage=self._usage(),
            acemath=self._extension(),
        )

    def chunks(self, *, include_usage: bool) -> Iterator[dict[str, object]]:
        """The same answer as `chat.completion.chunk` objects: role, content and end of every choice, then the usage."""
        no_usage_yet: dict[str, object] = {"usage": None} if include_usage else {}
        for place, item in enumerate(self._given):
            yield self._chunk(place, {"role": "assistant", "content": "", "refusal": None}) | no_usage_yet
            yield self._chunk(place, {"content": item.text}) | no_usage_yet
            end = self._chunk(place, {}, item.finish_reason.value) | no_usage_yet
            if place == len(self._given) - 1:
                end["acemath"] = self._extension().model_dump(mode="json")
            yield end
        if include_usage:
            yield {**self._frame(), "choices": [], "usage": self._usage().model_dump(mode="json")}

    def _chunk(self, place: int, delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": place, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._frame(), "choices": [choice]}

    def _frame(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": MODEL,
            "system_fingerprint": self._outcome.target.release,
        }

    def _usage(self) -> Usage:
        return usage_of(self._outcome, self._given)

    def _extension(self) -> ChatExtension:
        outcome = self._outcome
        return ChatExtension(
            answer=outcome.best.answer,
            score=outcome.best.score,
            scores=[item.score for item in self._given],
            selection=outcome.selection,
            stop_reason=outcome.stop_reason,
            degraded=outcome.degraded_reason is not None,
            degraded_reason=outcome.degraded_reason,
            release=outcome.target.release,
            models=ServedModels(policy=outcome.target.policy, reward=outcome.target.reward),
            n_requested=outcome.n_requested,
            n_generated=outcome.n_generated,
            n_scored=outcome.n_scored,
            n_rejected=outcome.n_rejected,
            candidates=candidates_of(outcome, self._detail),
            timings=timings_of(outcome, self._queue_seconds),
        )
