"""Conversations that a caller has rendered itself: text in which control tokens are control tokens.

Everywhere else in this service the caller's text can never become a control token, because it is a problem or a
solution that somebody wrote. The shapes that take a *rendered* conversation (`/classify`, `/get_reward`) are different:
the caller is a backend, such as an RL trainer, that applied the chat template, so `<|im_start|>` in its text is a turn.
Whoever calls them must escape what its own users write, or use `/v1/score`, `/score` or `/rerank`, where that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from acemath_core.prompts import ChatMessage
from acemath_prompts import PromptEncoder, read_tokenizer
from acemath_reward.batching import Encoded

_PROBE: list[ChatMessage] = [{"role": "user", "content": "."}]


class RenderedText:
    """A version's tokenizer for rendered conversations. Safe to share between threads.

    Args:
        tokenizer: the checkpoint's, as `read_tokenizer` gives it.
        encoder: the same version's encoder of conversations that were not rendered yet.
        end_ids: ids with which a policy ends its turn, besides the template's own.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: PromptEncoder, end_ids: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._generation = encoder.encode_prompt(_PROBE)
        finished = encoder.encode_conversation(_PROBE)
        self._header = self._generation[_common(self._generation, finished) :]
        self._turn_end = encoder.turn_end(_PROBE)
        self._end_ids = (end_ids | set(self._turn_end[:1])) & encoder.control_ids
        names = sorted(filter(None, map(tokenizer.id_to_token, self._end_ids)))
        self._end_texts = (tokenizer.decode(self._turn_end, skip_special_tokens=False), *names)

    @classmethod
    def from_directory(cls, directory: Path, encoder: PromptEncoder, end_ids: frozenset[int]) -> RenderedText:
        """The one of a checkpoint directory (`tokenizer.json`). Raises `OSError` when it cannot be read."""
        return cls(read_tokenizer((directory / "tokenizer.json").read_text("utf-8")), encoder, end_ids)

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a rendered text; `add_special_tokens` adds what the tokenizer's post-processor does (Llama 3: bos)."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def completed(self, ids: Sequence[int]) -> list[int]:
        """The ids with a whole end of turn: a policy stops at its first token, the template puts more after it."""
        body = list(ids)
        for length in range(len(self._turn_end), 0, -1):
            if body[-length:] == self._turn_end[:length]:
                return body + self._turn_end[length:]
        if body and body[-1] in self._end_ids:  # another one than the template's, such as <|endoftext|>
            body.pop()
        return body + self._turn_end

    def answered(self, prompt: str, answer: str) -> list[int] | None:
        """Ids of a rendered prompt and the answer to it, whose control tokens stay text but for one end of turn.

        The same ids as `/v1/score` has for that context and candidate. None when the prompt does not end as this
        template begins an assistant's turn: then nothing says where the answer begins.
        """
        head = self.ids(prompt, add_special_tokens=False)
        if not self._header or head[-len(self._header) :] != self._header:
            return None
        whole = self._encoder.encode_conversation(
            [*_PROBE, {"role": "assistant", "content": self._without_end(answer)}]
        )
        cut = _common(self._generation, whole)  # the answer's first characters may merge with the header's last token
        return head[: len(head) - (len(self._generation) - cut)] + whole[cut:]

    def split(self, ids: Sequence[int]) -> Encoded:
        """Context and answer, cut where `/v1/score` cuts: behind the beginning of the last assistant's turn.

        A function of the ids alone, so that the schedule never depends on what else is in the call.
        """
        return _cut(ids, min(self._answer_start(ids), len(ids) - 1))

    def _answer_start(self, ids: Sequence[int]) -> int:
        needed = max(1, len(self._header) - 1)
        for start in range(len(ids) - 1, -1, -1):
            if self._header and ids[start] == self._header[0]:
                common = _common(ids[start : start + len(self._header)], self._header)
                if common >= needed:
                    return start + common
        return 0

    def _without_end(self, answer: str) -> str:
        ending = next((text for text in self._end_texts if text and answer.endswith(text)), "")
        return answer[: len(answer) - len(ending)]


def _cut(ids: Sequence[int], position: int) -> Encoded:
    return Encoded(tuple(ids[:position]), tuple(ids[position:]))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)
