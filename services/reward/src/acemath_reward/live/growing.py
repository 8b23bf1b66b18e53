"""One candidate's ids as they arrive, text or ids, and where they part from the prompt.

The parting is `encoding`'s: the longest common beginning of the prompt's ids and the whole conversation's. It is known
once the ids that are certain differ from the prompt's or go beyond them; until then nothing is handed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from acemath_core.errors import InvalidRequest, TooLarge
from acemath_prompts import GrowingTurn, OpenTurn
from acemath_reward.encoding import Vocabulary
from acemath_reward.live.frames import Piece
from acemath_reward.ports import TokenIds

_SURROGATE = re.compile("[\ud800-\udfff]")
_HIGH = re.compile("[\ud800-\udbff]$")


@dataclass(frozen=True, slots=True)
class LiveContext:
    """What all candidates of a connection share.

    Attributes:
        vocabulary: the version's.
        prompt: ids of the generation prompt.
        turn: what stands around a candidate's text.
        turn_end: ids that the template puts behind it.
    """

    vocabulary: Vocabulary
    prompt: TokenIds
    turn: OpenTurn
    turn_end: TokenIds


@dataclass(frozen=True, slots=True)
class Ending:
    """What is left of a candidate that ends here.

    Attributes:
        cut: how many of the prompt's ids it begins with.
        ids: behind `cut`, and not given before; at least one.
        tokens: of the whole conversation.
    """

    cut: int
    ids: list[int]
    tokens: int


class _Source(Protocol):
    @property
    def held(self) -> int: ...

    @property
    def torn(self) -> bool: ...

    def add(self, piece: Piece) -> list[int]: ...

    def end(self) -> list[int]: ...


class _TextSource:
    def __init__(self, turn: GrowingTurn, max_chars: int) -> None:
        self._turn, self._max_chars, self._chars = turn, max_chars, 0
        self._half = ""  # of a character that a piece ended in

    @property
    def held(self) -> int:
        return self._turn.held

    @property
    def torn(self) -> bool:
        return bool(self._half)

    def add(self, piece: Piece) -> list[int]:
        if piece.text is None:
            raise InvalidRequest(f"candidate {piece.index} began as text; send its token_ids from its beginning")
        text, self._half = _joined(piece.index, self._half + piece.text)
        self._chars += len(text)
        if self._chars > self._max_chars:
            raise TooLarge(f"candidate {piece.index} has {self._chars} characters; a text may have {self._max_chars}")
        return self._turn.add(text)

    def end(self) -> list[int]:
        return self._turn.end()


def _joined(index: int, text: str) -> tuple[str, str]:
    """The text with each pair of surrogates as the character that it is, and the half that it ends in.

    JSON spells a character beyond U+FFFF as two of 16 bits, and a writer may end a piece between them.
    """
    if not _SURROGATE.search(text):
        return text, ""
    half = text[-1] if _HIGH.search(text) else ""
    try:
        return text[: len(text) - len(half)].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), half
    except UnicodeDecodeError as error:
        message = f"candidate {index}: text holds a lone surrogate, which is no Unicode text"
        raise InvalidRequest(message, param="text") from error


class _IdSource:
    """Checks ids as `encoding` does; an end of turn is held, for it may only be the last and then is not counted."""

    def __init__(self, context: LiveContext) -> None:
        self._context, self._vocabulary = context, context.vocabulary
        self._control = self._vocabulary.encoder.control_ids
        self._ends = self._vocabulary.end_ids | (set(context.turn_end[:1]) & self._control)
        self._held: list[int] = []
        self._first: Sequence[int] = context.prompt

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def torn(self) -> bool:
        return False

    def add(self, piece: Piece) -> list[int]:
        if piece.token_ids is None:
            raise InvalidRequest(f"candidate {piece.index} began as token_ids; send its text from its beginning")
        ids = self._held + piece.token_ids
        self._held = [ids.pop()] if ids[-1] in self._ends else []
        for token in ids:
            self._check(piece.index, token)
        before, self._first = self._first, ()
        return [*before, *ids]

    def end(self) -> list[int]:
        return [*self._first, *self._context.turn_end]

    def _check(self, index: int, token: int) -> None:
        if token >= self._vocabulary.size:
            size = self._vocabulary.size
            raise InvalidRequest(f"candidate {index}: id {token} is not below {size}, the model's vocabulary")
        if token in self._control:
            message = f"candidate {index}: id {token} is a control token; only one end of turn may trail the ids"
            raise InvalidRequest(message)


class GrowingCandidate:
    """A candidate while it is being written.

    Args:
        context: what it answers.
        first: its first piece; says whether it comes as text or as ids.
        max_chars: of its text.

    Attributes:
        cut: how many of the prompt's ids it begins with; None until that is certain.
        tokens: of the conversation so far.
    """

    def __init__(self, context: LiveContext, first: Piece, max_chars: int) -> None:
        encoder = context.vocabulary.encoder
        self._prompt = context.prompt
        self._source: _Source = (
            _IdSource(context) if first.text is None else _TextSource(encoder.growing(context.turn), max_chars)
        )
        self._undecided: list[int] = []
        self.cut: int | None = None
        self.tokens = 0

    @property
    def held(self) -> int:
        """Characters or ids that wait for what follows them."""
        return self._source.held

    def add(self, piece: Piece) -> list[int]:
        """The ids behind `cut` that are certain now. Raises `InvalidRequest` or `TooLarge` (a `ServiceError`)."""
        ids = self._source.add(piece)
        self.tokens += len(ids)
        if self.cut is not None:
            return ids
        self._undecided += ids
        self.cut = self._parting(self._undecided, ended=False)
        if self.cut is None:
            return []
        known, self._undecided = self._undecided[self.cut :], []
        return known

    def ending(self) -> Ending:
        """The rest, if it ended here, before a character of which only a half came. Changes nothing."""
        ids = self._source.end()
        tokens = self.tokens + len(ids)
        if self.cut is not None:
            return Ending(self.cut, ids, tokens)
        whole = self._undecided + ids
        cut = self._parting(whole, ended=True)
        assert cut is not None, "the end decides it"
        return Ending(cut, whole[cut:], tokens)

    def end(self, index: int) -> Ending:
        """The rest; it ends here. Raises `InvalidRequest` when it ends inside a character."""
        if self._source.torn:
            message = f"candidate {index}: text ends in a lone surrogate, the first half of a character"
            raise InvalidRequest(message, param="text")
        return self.ending()

    def _parting(self, whole: Sequence[int], *, ended: bool) -> int | None:
        prompt = self._prompt
        limit = min(len(prompt), len(whole))
        differs = next((i for i in range(limit) if prompt[i] != whole[i]), None)
        if differs is not None:
            return differs
        if len(whole) > len(prompt):
            return len(prompt)
        return len(whole) - 1 if ended else None  # the candidate keeps at least the row that is scored
