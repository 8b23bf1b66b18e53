"""Does a version's tokenizer and chat template still make the token ids that its trainer saw?

A model that is shown fixed ids answers as it was trained whatever its tokenizer does: a wrong tokenizer or template is
seen in the ids alone. A manifest's canary therefore says of which conversation its ids are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from acemath_core.prompts import ChatMessage
from acemath_core.wire import Turn
from acemath_prompts.encoder import PromptEncoder
from acemath_prompts.template import TemplateError


class RenderingMismatch(TemplateError):
    """The ids are not the trainer's; the message says of which conversation, and from where on."""


def check_rendering(encoder: PromptEncoder, conversations: Iterable[tuple[Sequence[Turn], Sequence[int]]]) -> None:
    """Compare finished conversations with the token ids that the trainer made of them.

    Args:
        encoder: the version's.
        conversations: turns, and the ids of all of them together.

    Raises:
        RenderingMismatch: one has other ids.
        TemplateError: the template refuses one.
    """
    for number, (turns, expected) in enumerate(conversations):
        messages: list[ChatMessage] = [{"role": turn.role, "content": turn.content} for turn in turns]
        found = encoder.encode_conversation(messages)
        if found != list(expected):
            shorter = min(len(found), len(expected))
            where = next((i for i in range(shorter) if found[i] != expected[i]), shorter)
            raise RenderingMismatch(
                f"tokenizer and chat template make {len(found)} token ids of the canary's conversation {number}, the "
                f"trainer had {len(expected)}, and they differ from id {where} on; publish the trained tokenizer"
            )
