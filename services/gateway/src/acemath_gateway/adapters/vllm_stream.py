"""The chunks of vLLM's completions stream, and the candidates that grow out of them."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from acemath_core.wire import FinishReason
from acemath_gateway.adapters.http import CallFailed
from acemath_gateway.metrics import CallResult
from acemath_gateway.ports import CandidateFailed, CandidateFinished, PolicyEvent, TokensGenerated


class Choice(BaseModel):
    """What a chunk adds to one candidate."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


class Chunk(BaseModel):
    """One event of a completions stream."""

    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None


class Growing:
    """One candidate as far as it has come."""

    def __init__(self, index: int, max_tokens: int) -> None:
        self.index, self.ended = index, False
        self._max_tokens = max_tokens
        self._text: list[str] = []
        self._ids: list[int] = []

    def take(self, choice: Choice) -> list[PolicyEvent]:
        """Add what a chunk brings; raises `CallFailed` when it cannot be so."""
        self._text.append(choice.text)
        self._ids += choice.token_ids
        if self.ended or len(self._ids) > self._max_tokens:
            raise CallFailed(CallResult.BROKEN, f"went on with candidate {self.index} after its end")
        events: list[PolicyEvent] = []
        if choice.text or choice.token_ids:
            events.append(TokensGenerated(self.index, choice.text, tuple(choice.token_ids)))
        if choice.finish_reason is not None:
            self.ended = True
            events.append(self._end(choice.finish_reason))
        return events

    def _end(self, reason: str) -> PolicyEvent:
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return CandidateFailed(self.index, reason)
        return CandidateFinished(self.index, "".join(self._text), tuple(self._ids), FinishReason(reason))


def parse(data: str) -> Chunk:
    """An event's data as a chunk; raises `CallFailed` when it is none."""
    if data.startswith('{"error"'):
        raise CallFailed(CallResult.BROKEN, "failed while generating")
    try:
        return Chunk.model_validate_json(data)
    except ValidationError as error:
        raise CallFailed(CallResult.BROKEN, "sent an event that is not a completion chunk") from error
