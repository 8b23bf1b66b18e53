r"""Text that is still being written, to the ids that the finished text will have.

Byte-pair encoding works inside pre-tokens, and a pre-tokenizer's regular expression decides where those lie. At some
pairs of characters every text is cut, whatever stands around them: before a space that follows a character which is
none, and before a newline that follows an ASCII letter or digit. No alternative of the expressions in `_PROVEN` (nor of
GPT-2's, built into `ByteLevel`) matches across such a pair, and their only look beyond a match, `\s+(?!\S)`, looks at
one character behind white space. So the ids of `x + y`, cut at such a pair, are those of `x` and then those of `y`. NFC
keeps that: a space or a newline composes with nothing. What stands before the last such cut is released; the rest is
held. A tokenizer whose cuts are not proven holds everything until the text ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

_CUT = re.compile(r"(?<=[!-~\w]) |(?<=[0-9A-Za-z])\n")
_NEVER = re.compile("(?!)")
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PROVEN = frozenset({_SPLIT % r"\p{N}", _SPLIT % r"\p{N}{1,3}"})  # Qwen2 and 2.5; Llama 3


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A conversation up to the assistant's turn, and what the template puts behind it.

    Attributes:
        before: ids of everything that no text of the turn can change.
        head: the template's text before the turn's, which is encoded together with it.
        tail: the template's text behind it, likewise.
        after: ids of all that follows.
        trims: whether the template drops white space around the turn's text.
    """

    before: tuple[int, ...]
    head: str
    tail: str
    after: tuple[int, ...]
    trims: bool


class GrowingTurn:
    """The ids of a conversation whose last turn arrives in pieces: those of `encode_conversation`, bit by bit.

    Args:
        turn: what stands around it.
        encode: ids of a text without control tokens.
        cuts: matches the character before which text may be cut.
    """

    def __init__(self, turn: OpenTurn, encode: Callable[[str], list[int]], cuts: re.Pattern[str]) -> None:
        self._turn, self._encode, self._cuts = turn, encode, cuts
        self._held: list[str] = []
        self._last = turn.head[-1:]
        self._started = self._released = False

    @property
    def held(self) -> int:
        """Characters whose ids are not certain yet."""
        return sum(map(len, self._held))

    def add(self, text: str) -> list[int]:
        """Ids that are certain now and were not before."""
        if self._turn.trims and not self._started:
            text = text.lstrip()
        if not text:
            return []
        self._started = True
        cut, self._last = self._last_cut(text), text[-1]
        if cut is None:
            self._held.append(text)
            return []
        self._held.append(text[:cut])
        ids = self._ids("".join(self._held))
        self._held, self._released = [text[cut:]], True
        return ids

    def end(self) -> list[int]:
        """The remaining ids if the text ends here, those that the template puts behind the turn among them.

        Changes nothing: more text may follow, as if nobody had asked.
        """
        rest = "".join(self._held)
        rest = rest.rstrip() if self._turn.trims else rest
        return [*self._ids(rest + self._turn.tail), *self._turn.after]

    def _last_cut(self, text: str) -> int | None:
        places = [match.start() for match in self._cuts.finditer(self._last + text)]
        return places[-1] - len(self._last) if places else None

    def _ids(self, text: str) -> list[int]:
        if self._released:
            return self._encode(text)
        return [*self._turn.before, *self._encode(self._turn.head + text)]


def cuts_of(document: Mapping[str, Any], control: Collection[str]) -> re.Pattern[str]:
    """Where text may be cut for this tokenizer; matches nothing if that is not proven.

    Args:
        document: `tokenizer.json`.
        control: the control tokens, which no text yields.
    """
    model = document.get("model", {})
    others = [token for token in document.get("added_tokens", []) if token["content"] not in control]
    proven = (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and _normalizes_safely(document.get("normalizer"))
        and _splits_safely(document.get("pre_tokenizer"))
        and not any(map(_reaches_over, others))
    )
    return _CUT if proven else _NEVER


def _normalizes_safely(normalizer: Mapping[str, Any] | None) -> bool:
    return normalizer is None or normalizer.get("type") == "NFC"


def _splits_safely(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Known steps, one of which cuts; `ByteLevel`, which rewrites the characters, is the last."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or "ByteLevel" in kinds[:-1] or steps[-1].get("add_prefix_space"):
        return False
    splits = [step for step in steps[:-1] if step.get("type") != "Digits"]
    return all(map(_is_proven, splits)) and bool(splits or steps[-1].get("use_regex", True))


def _is_proven(step: Mapping[str, Any]) -> bool:
    known = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    return known and step.get("pattern", {}).get("Regex") in _PROVEN


def _reaches_over(token: Mapping[str, Any]) -> bool:
    """Whether an added token may take a character on either side of a cut."""
    flags = any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
    return flags or _CUT.search(token["content"]) is not None
