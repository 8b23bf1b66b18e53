"""A version's chat template, rendered in a sandbox, with the caller's text kept apart from the template's own.

The environment is the one that `transformers.PreTrainedTokenizerBase.apply_chat_template` uses (immutable sandbox,
`trim_blocks`, `lstrip_blocks`, `raise_exception`), so that the rendered text is the same. `strftime_now` is refused: a
template that inserts today's date makes every score depend on the day.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from acemath_core.prompts import ChatMessage


class TemplateError(Exception):
    """The chat template cannot be used: it refuses the conversation, is broken, or asks for what is not allowed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of rendered text.

    Attributes:
        text: the text.
        from_caller: whether it is a message's content, which may never become a control token.
    """

    text: str
    from_caller: bool


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja source.
        tokens: the special tokens that templates may name (`bos_token`, `eos_token`, …).

    Attributes:
        source: as given.
        trims: whether it drops white space around contents.

    Raises:
        TemplateError: the source does not compile, or does not render an ordinary conversation.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _refuse_date
        try:
            self._template = environment.from_string(source)
        except JinjaError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error
        self.source = source
        self._tokens = dict(tokens)
        self.trims = self._trims_content()

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> list[Piece]:
        """The rendered conversation, cut into the template's own text and the messages' contents.

        Raises:
            TemplateError: the template refuses the conversation or drops one of its messages.
        """
        # A marker that no caller can guess stands for each content while the template runs.
        nonce = secrets.token_hex(8)
        marks = [f"\ue000{nonce}:{i}\ue001" for i in range(len(messages))]
        marked: list[ChatMessage] = [
            {"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)
        ]
        text, pieces = self._run(marked, add_generation_prompt), list[Piece]()
        for message, mark in zip(messages, marks, strict=True):
            own, found, text = text.partition(mark)
            pieces += [Piece(own, from_caller=False), Piece(self._content(message["content"]), from_caller=True)]
            if not found or nonce in own:
                raise _misplaced()
        if nonce in text:
            raise _misplaced()
        pieces.append(Piece(text, from_caller=False))
        return [piece for piece in pieces if piece.text]

    def _run(self, messages: Sequence[ChatMessage], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._tokens
            )
        except JinjaError as error:
            raise TemplateError(f"the chat template refuses this conversation: {error}") from error

    def _content(self, text: str) -> str:
        return text.strip() if self.trims else text

    def _trims_content(self) -> bool:
        """Whether the template strips contents (Llama 3's does): a marker would hide that."""
        probe: list[ChatMessage] = [{"role": "user", "content": " \ue002 "}]
        return " \ue002 " not in self._run(probe, add_generation_prompt=False)


def _misplaced() -> TemplateError:
    return TemplateError(
        "the chat template drops, repeats or reorders messages; this conversation cannot be rendered safely"
    )


def _refuse(message: str) -> NoReturn:
    raise JinjaError(message)


def _refuse_date(_: str) -> NoReturn:
    raise JinjaError("it inserts today's date, which makes answers and scores depend on the day")
