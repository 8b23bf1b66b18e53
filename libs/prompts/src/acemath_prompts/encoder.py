"""Conversations to token ids, equal to `apply_chat_template` on ordinary text and safe on hostile text.

`apply_chat_template` renders one string and tokenises it, so that `<|im_end|>` inside a problem ends the user's turn.
Here only the template's own text may yield control tokens: the rendered conversation is cut at the template's control
tokens, and what lies between them (template text and caller text together, so that merges across their border are the
same) is encoded with the control tokens switched off.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from acemath_core.prompts import ChatMessage
from acemath_prompts.growing import GrowingTurn, OpenTurn, cuts_of
from acemath_prompts.template import ChatTemplate, Piece, TemplateError
from acemath_prompts.tokenizer import read_tokenizer

_SHORT_CHARS, _KEPT_TEXTS = 128, 64
"""What stands between two control tokens is mostly the template's own, or the usual system text: those are kept."""

_PROBE: list[ChatMessage] = [
    {"role": "system", "content": r"Put your final answer within \boxed{}."},
    {"role": "user", "content": "What is 2 + 2?\n\nThink."},
    {"role": "assistant", "content": "\n2 + 2 = 4, so\n\n\\boxed{4}  "},
]


class PromptEncoder:
    """One version's tokenizer and chat template. Safe to share between threads.

    Args:
        tokenizer_json: the content of `tokenizer.json`.
        template: the version's chat template.

    Raises:
        TemplateError: the two do not reproduce the plain rendering on an ordinary conversation.
    """

    def __init__(self, tokenizer_json: str, template: ChatTemplate) -> None:
        self._template = template
        document = json.loads(tokenizer_json)
        added = document.get("added_tokens", [])
        control = [token for token in added if token["special"] or token["content"] in template.source]
        _refuse_stripping(control)
        self._ids = {str(token["content"]): int(token["id"]) for token in control}
        names = sorted(map(re.escape, self._ids), key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(names)})") if names else re.compile("(?!)")
        self._cuts = cuts_of(document, self._ids)
        self._tokenizer = _text_only(tokenizer_json, set(self._ids))
        self._ids_of = functools.partial(_ids_of, self._tokenizer)  # not of `self`: with a cycle, only a full
        self._kept = functools.lru_cache(_KEPT_TEXTS)(self._ids_of)  # collection would free an old version's memory
        self._check_against_plain_rendering(tokenizer_json)

    @classmethod
    def from_directory(cls, directory: Path) -> PromptEncoder:
        """The encoder of a checkpoint directory (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`).

        Raises:
            TemplateError: there is no chat template, or it cannot be used.
            OSError: a file cannot be read.
        """
        config: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
        template_file = directory / "chat_template.jinja"
        source = template_file.read_text("utf-8") if template_file.exists() else config.get("chat_template")
        if not isinstance(source, str):
            raise TemplateError(f"{directory.name} has no single chat template; add chat_template.jinja")
        template = ChatTemplate(source, _named_tokens(config))
        return cls((directory / "tokenizer.json").read_text("utf-8"), template)

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that only the template may produce."""
        return frozenset(self._ids.values())

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode_prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Ids of the conversation with the generation prompt: what the policy continues.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        return self._encode(self._template.render(messages, add_generation_prompt=True))

    def encode_conversation(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Ids of the finished conversation: what the reward model scores, at its last id.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        return self._encode(self._template.render(messages, add_generation_prompt=False))

    def turn_end(self, context: Sequence[ChatMessage]) -> list[int]:
        """Ids that the template puts after an assistant turn (ChatML: `<|im_end|>` and a newline)."""
        pieces = self._template.render([*context, {"role": "assistant", "content": "."}], add_generation_prompt=False)
        return [] if pieces[-1].from_caller else self._encode(pieces[-1:])

    def open_turn(self, context: Sequence[ChatMessage]) -> OpenTurn:
        """What stands around the assistant's next turn, whose text is not known yet.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        pieces = self._template.render([*context, {"role": "assistant", "content": "."}], add_generation_prompt=False)
        place = max(index for index, piece in enumerate(pieces) if piece.from_caller)
        before, head = self._encode_controlled(pieces[:place])
        behind = self._control.split("".join(piece.text for piece in pieces[place + 1 :]), maxsplit=1)
        after = self._encode([Piece("".join(behind[1:]), from_caller=False)])
        return OpenTurn(tuple(before), head, behind[0], tuple(after), self._template.trims)

    def encode_turn(self, turn: OpenTurn, text: str) -> list[int]:
        """Ids of the finished conversation with this text as its last turn: those of `encode_conversation`.

        What stands around the turn is rendered and encoded once for all texts.
        """
        text = text.strip() if turn.trims else text
        return [*turn.before, *self._encode_text(turn.head + text + turn.tail), *turn.after]

    def growing(self, turn: OpenTurn) -> GrowingTurn:
        """The ids of the conversation as the turn's text arrives."""
        return GrowingTurn(turn, self._encode_text, self._cuts)

    def _encode(self, pieces: Sequence[Piece]) -> list[int]:
        ids, rest = self._encode_controlled(pieces)
        return ids + self._encode_text(rest)

    def _encode_controlled(self, pieces: Sequence[Piece]) -> tuple[list[int], str]:
        """Ids up to the last control token, and the text behind it."""
        ids: list[int] = []
        plain: list[str] = []
        for piece in pieces:
            parts = [piece.text] if piece.from_caller else self._control.split(piece.text)
            for position, part in enumerate(parts):
                if position % 2 == 0:
                    plain.append(part)
                else:
                    ids += self._encode_text("".join(plain))
                    ids.append(self._ids[part])
                    plain.clear()
        return ids, "".join(plain)

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self._kept(text) if len(text) <= _SHORT_CHARS else self._ids_of(text))

    def _check_against_plain_rendering(self, tokenizer_json: str) -> None:
        plain = read_tokenizer(tokenizer_json)
        for end in (2, 3):
            pieces = self._template.render(_PROBE[:end], add_generation_prompt=end == 2)
            rendered = "".join(piece.text for piece in pieces)
            if plain.encode(rendered, add_special_tokens=False).ids != self._encode(pieces):
                raise TemplateError(
                    "this tokenizer does not split at its control tokens as expected; it is not supported"
                )


def _ids_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)  # it makes no offsets
    return tuple(encoding.ids)


def _text_only(tokenizer_json: str, control: set[str]) -> Tokenizer:
    """The tokenizer with its control tokens turned into ordinary text."""
    document = json.loads(tokenizer_json)
    for token in document.get("added_tokens", []):
        token["special"] = token["content"] in control
    tokenizer = read_tokenizer(json.dumps(document))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _refuse_stripping(control: Sequence[dict[str, Any]]) -> None:
    for token in control:
        if token.get("lstrip") or token.get("rstrip"):
            raise TemplateError(f"control token {token['content']!r} strips the text beside it, which is not supported")


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like: a string, or (older files) an object with its content."""
    named: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            named[key] = text
    return named
