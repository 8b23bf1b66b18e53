"""A score request to token ids; what cannot be scored is refused with the index of the candidate at fault.

The boundary between prompt and candidate is a function of the two alone: the longest common beginning of the ids of
the generation prompt and those of the whole conversation. (A candidate that begins with a newline may merge with the
template's newline before it; then the boundary lies before that token.) So the schedule never depends on mates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acemath_core.errors import ErrorCode, InvalidRequest, TooLarge
from acemath_core.prompts import ChatMessage, reward_context
from acemath_core.wire import ScoreRequest, ScoreUsage, TokenCandidate
from acemath_prompts import OpenTurn, PromptEncoder, TemplateError
from acemath_reward.activation import Head
from acemath_reward.batching import Encoded
from acemath_reward.ports import TokenIds
from acemath_reward.rendered import RenderedText


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One version's way from text to ids.

    Attributes:
        encoder: its tokenizer and chat template.
        end_ids: ids with which a policy ends its turn; one of them may trail a candidate's ids.
        size: ids are below this.
        max_tokens: prompt and candidate together may have so many.
        rendered: reads conversations that a trusted caller has rendered.
        head: what vLLM would make of a score.
    """

    encoder: PromptEncoder
    end_ids: frozenset[int]
    size: int
    max_tokens: int
    rendered: RenderedText
    head: Head


@dataclass(frozen=True, slots=True)
class EncodedCall:
    """A call's candidates, each different one once.

    Attributes:
        sequences: what is scored.
        source: for each candidate of the call, the position of its sequence.
        usage: tokens of the call; duplicates count, as the caller sent them.
    """

    sequences: tuple[Encoded, ...]
    source: tuple[int, ...]
    usage: ScoreUsage

    @property
    def duplicates(self) -> int:
        """Candidates that share another's sequence."""
        return len(self.source) - len(self.sequences)


def check_text(param: str, text: str, max_chars: int) -> None:
    """Refuse a text over `max_chars` before anything is done with it.

    Raises:
        TooLarge: names the text.
    """
    if len(text) > max_chars:
        raise TooLarge(f"{param} has {len(text)} characters; a text may have {max_chars}", param=param)


def check_sizes(request: ScoreRequest, max_chars: int) -> None:
    """Refuse texts over `max_chars` before anything is done with them, and a context that is not one.

    Raises:
        TooLarge: names the text.
        InvalidRequest: the last turn is not the user's.
    """
    turns = enumerate(request.messages or [])
    texts = [(f"messages.{i}", turn.content) for i, turn in turns] or [("problem", request.problem or "")]
    texts += [(f"candidates.{i}", text) for i, text in enumerate(request.candidates) if isinstance(text, str)]
    for param, text in texts:
        check_text(param, text, max_chars)
    if request.messages and request.messages[-1].role != "user":
        raise InvalidRequest("the last of messages must be the user's turn that candidates answer", param="messages")


def encode(request: ScoreRequest, vocabulary: Vocabulary) -> EncodedCall:
    """The call as token ids; blocks for milliseconds, so it runs off the event loop.

    Raises:
        InvalidRequest: a candidate is too long (`context_length_exceeded`), has ids that it may not have, or the
            chat template refuses the conversation.
    """
    named = [(f"candidates.{index}", candidate) for index, candidate in enumerate(request.candidates)]
    param = "messages" if request.problem is None else "problem"
    sequences, prompt_tokens = encode_candidates(_context(request), named, vocabulary, param)
    return without_duplicates(sequences, prompt_tokens)


def encode_candidates(
    context: list[ChatMessage],
    candidates: Sequence[tuple[str, str | TokenCandidate]],
    vocabulary: Vocabulary,
    context_param: str,
) -> tuple[list[Encoded], int]:
    """The candidates of one context as the engine takes them, and the number of the context's tokens.

    Args:
        context: the turns that the candidates answer.
        candidates: each with the name under which the caller sent it.
        vocabulary: the version's.
        context_param: the name under which the caller sent the context.

    Raises:
        InvalidRequest: as `encode`.
    """
    try:
        ids = any(isinstance(candidate, TokenCandidate) for _, candidate in candidates)
        around = _Around.of(context, vocabulary.encoder, ids=ids)
        check_length(context_param, around.prompt, vocabulary)
        found = [_whole(param, candidate, around, vocabulary) for param, candidate in candidates]
    except TemplateError as error:
        message = f"the model's chat template refuses {context_param}: {error}"
        raise InvalidRequest(message, param=context_param) from error
    prompts: dict[int, TokenIds] = {}
    return [_split(around.prompt, whole, prompts) for whole in found], len(around.prompt)


def _context(request: ScoreRequest) -> list[ChatMessage]:
    if request.messages is None:
        return reward_context([{"role": "user", "content": request.problem or ""}])
    return reward_context([{"role": turn.role, "content": turn.content} for turn in request.messages])


@dataclass(frozen=True, slots=True)
class _Around:
    """What all candidates of a context share.

    Attributes:
        prompt: ids of the generation prompt.
        turn: what stands around a candidate's text.
        end: ids that the template puts behind it; only candidates that come as ids need them.
    """

    prompt: list[int]
    turn: OpenTurn
    end: list[int]

    @classmethod
    def of(cls, context: list[ChatMessage], encoder: PromptEncoder, *, ids: bool) -> _Around:
        """Raises `TemplateError`."""
        end = encoder.turn_end(context) if ids else []
        return cls(encoder.encode_prompt(context), encoder.open_turn(context), end)


def _whole(param: str, candidate: str | TokenCandidate, around: _Around, vocabulary: Vocabulary) -> list[int]:
    if isinstance(candidate, TokenCandidate):
        ids = around.prompt + _checked(param, candidate.token_ids, around.end, vocabulary) + around.end
    else:
        ids = vocabulary.encoder.encode_turn(around.turn, candidate)
    check_length(param, ids, vocabulary)
    return ids


def check_length(param: str, ids: Sequence[int], vocabulary: Vocabulary) -> None:
    """Refuse a conversation that the model does not take whole.

    Raises:
        InvalidRequest: (`context_length_exceeded`) names what the caller sent, and its length.
    """
    if len(ids) > vocabulary.max_tokens:
        raise InvalidRequest(
            f"{param} has {len(ids)} tokens with what stands around it; the model takes {vocabulary.max_tokens}",
            param=param,
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )


def _checked(param: str, ids: Sequence[int], end: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """A candidate's ids without one trailing end of turn; any other control id could forge a turn."""
    control = vocabulary.encoder.control_ids
    ends = vocabulary.end_ids | (set(end[:1]) & control)
    body = list(ids[:-1] if ids[-1] in ends else ids)
    for position, token in enumerate(body):
        if token >= vocabulary.size:
            raise InvalidRequest(
                f"{param}: id {token} is not below {vocabulary.size}, the model's vocabulary", param=param
            )
        if token in control:
            raise InvalidRequest(
                f"{param}: id {token} at {position} is a control token; only one end of turn may trail the ids",
                param=param,
            )
    return body


def _split(prompt: Sequence[int], whole: Sequence[int], known: dict[int, TokenIds]) -> Encoded:
    """Cut where they part; `known` holds the beginnings by length, so that candidates share theirs as one object."""
    limit = min(len(prompt), len(whole) - 1)  # the candidate keeps at least the row that is scored
    cut = next((i for i in range(limit) if prompt[i] != whole[i]), limit)
    if cut not in known:
        known[cut] = tuple(whole[:cut])
    return Encoded(known[cut], tuple(whole[cut:]))


def without_duplicates(sequences: Sequence[Encoded], prompt_tokens: int) -> EncodedCall:
    """A call's sequences, each different one once.

    Args:
        sequences: one for each candidate.
        prompt_tokens: tokens of the context that all of them share; 0 where they share none.
    """
    positions: dict[Encoded, int] = {}
    source = tuple(positions.setdefault(sequence, len(positions)) for sequence in sequences)
    own = sum(sequence.tokens for sequence in sequences) - prompt_tokens * len(sequences)
    usage = ScoreUsage(prompt_tokens=prompt_tokens, candidate_tokens=own, total_tokens=prompt_tokens + own)
    return EncodedCall(tuple(positions), source, usage)
