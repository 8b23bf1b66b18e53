"""One call of any shape through the score service, all its scores at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from acemath_core.deadline import DEADLINE_HEADER, Deadline
from acemath_core.errors import InvalidRequest
from acemath_reward.encoding import Vocabulary, check_length
from acemath_reward.routes import unless_gone
from acemath_reward.scoring import ScoreService, Work

MAX_ITEMS = 1024
"""Conversations of one call; each waits by itself, so `max_queue_items` and `max_queue_tokens` hold too."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A finished call.

    Attributes:
        model: name@version.
        vocabulary: that version's.
        scores: raw float32 logits, in the order of the call.
        tokens: tokens of each conversation, in that order.
    """

    model: str
    vocabulary: Vocabulary
    scores: tuple[float, ...]
    tokens: tuple[int, ...]


class Scorer:
    """Scores calls; a caller that goes away takes its work with it.

    Args:
        service: scores.
        default_deadline_seconds: for a call without `x-acemath-deadline-ms`.
    """

    def __init__(self, service: ScoreService, default_deadline_seconds: float) -> None:
        self._service, self._default_seconds = service, default_deadline_seconds

    async def score(self, request: Request, work: Work) -> Scored:
        """All scores of a call. Raises what `ScoreService.queued` and `Scoring.items` raise."""
        header = request.headers.get(DEADLINE_HEADER)
        deadline = Deadline.from_header(header, default_seconds=self._default_seconds)
        return await unless_gone(request, self._collect(work, deadline))

    async def _collect(self, work: Work, deadline: Deadline) -> Scored:
        async with self._service.queued(work, deadline) as scoring:
            items = [item async for part in scoring.items() for item in part]
        items.sort(key=lambda item: item.index)
        scores, tokens = tuple(item.score for item in items), tuple(item.tokens for item in items)
        return Scored(scoring.model, scoring.vocabulary, scores, tokens)


def checked(param: str, ids: Sequence[int], vocabulary: Vocabulary) -> Sequence[int]:
    """Ids of a whole conversation, if the model can score them.

    Raises:
        InvalidRequest: there are none, too many (`context_length_exceeded`), or one is not in the vocabulary.
    """
    if not ids:
        raise InvalidRequest(f"{param} has no tokens; there is nothing to score", param=param)
    check_length(param, ids, vocabulary)
    largest = max(ids)
    if largest >= vocabulary.size:
        raise InvalidRequest(
            f"{param}: id {largest} is not below {vocabulary.size}, the model's vocabulary",
            param=param,
        )
    return ids
