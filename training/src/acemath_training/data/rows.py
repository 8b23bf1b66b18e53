"""Rows of token ids with labels on the response only, and batches of rows of like length."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from acemath_core.prompts import ChatMessage, policy_messages, reward_messages
from acemath_training.data.problem import Problem
from acemath_training.errors import DataError

IGNORED = -100


class Encoder(Protocol):
    """The part of `acemath_prompts.PromptEncoder` that training needs."""

    def encode_prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Ids of the conversation with the generation prompt."""
        ...

    def encode_conversation(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Ids of the finished conversation."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of prompt and response; the first `prompt_length` ids carry no loss."""

    ids: tuple[int, ...]
    prompt_length: int


def sft_row(encoder: Encoder, problem: Problem, end_of_turn: int) -> Row:
    """System text, problem and solution, up to and with the end-of-turn token.

    Raises:
        DataError: see `conversation_row`.
    """
    messages = policy_messages(problem.problem)
    return conversation_row(encoder, [*messages, {"role": "assistant", "content": problem.solution}], end_of_turn)


def conversation_row(encoder: Encoder, messages: Sequence[ChatMessage], end_of_turn: int) -> Row:
    """A conversation whose last turn is the response that carries the loss.

    Raises:
        DataError: when the prompt is not a prefix of the conversation, so that labels would be wrong.
    """
    prompt = encoder.encode_prompt(messages[:-1])
    whole = encoder.encode_conversation(messages)
    if whole[: len(prompt)] != prompt:
        raise DataError("the chat template's prompt is not a prefix of the conversation")
    end = len(whole) - whole[::-1].index(end_of_turn)
    return Row(tuple(whole[:end]), len(prompt))


def reward_row(encoder: Encoder, problem: str, solution: str) -> tuple[int, ...]:
    """The whole encoded conversation; the score is read at its last token."""
    return tuple(encoder.encode_conversation(reward_messages(problem, solution)))


class SftBatches(torch.utils.data.Dataset[list[Row]]):
    """Batch i of the stream, a pure function of i: rows are sorted by length inside blocks of batches.

    A block is `batches_per_block * rows_per_batch` consecutive rows of the stream; its batches come in
    an order shuffled by the block's number, so lengths do not drift from short to long.
    """

    def __init__(
        self,
        row: Callable[[int], Row],
        *,
        rows_per_batch: int,
        batches: int,
        cursor: int = 0,
        batches_per_block: int = 16,
        max_length: int = 512,
    ) -> None:
        """Take the stream (a row by its number), the row to start at, and the longest row allowed, in tokens."""
        self._row_at, self._rows_per_batch = row, rows_per_batch
        self._batches, self._cursor, self._per_block = batches, cursor, batches_per_block
        self._max_length = max_length
        self._block: tuple[int, list[list[Row]]] = (-1, [])

    def __len__(self) -> int:
        """The number of batches this run may ask for."""
        return self._batches

    def __getitem__(self, index: int) -> list[Row]:
        """Rows of batch `index`.

        Raises:
            DataError: when a row is longer than allowed.
        """
        number, place = divmod(index, self._per_block)
        if self._block[0] != number:
            self._block = (number, self._make_block(number))
        return self._block[1][place]

    def cursor_after(self, batches: int) -> int:
        """The row of the stream at which a run that made `batches` steps must be continued."""
        blocks = -(-batches // self._per_block)
        return self._cursor + blocks * self._per_block * self._rows_per_batch

    def _make_block(self, number: int) -> list[list[Row]]:
        size = self._per_block * self._rows_per_batch
        first = self._cursor + number * size
        rows = [self._row(index) for index in range(first, first + size)]
        rows.sort(key=lambda row: len(row.ids))
        count = self._rows_per_batch
        batches = [rows[start : start + count] for start in range(0, size, count)]
        random.Random(first).shuffle(batches)
        return batches

    def _row(self, index: int) -> Row:
        row = self._row_at(index)
        if len(row.ids) > self._max_length:
            raise DataError(f"row {index} has {len(row.ids)} tokens, more than {self._max_length}")
        return row


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading ids all rows share."""
    shortest = min(rows, key=len)
    for place, token in enumerate(shortest):
        if any(row[place] != token for row in rows):
            return place
    return len(shortest)


def collate_sft(rows: Sequence[Row], pad: int, *, share: bool = True) -> dict[str, torch.Tensor]:
    """A right-padded batch whose shared beginning is taken out, to be computed once (unless `share` is off).

    Returns:
        `prefix` [P] ids shared by all rows (the system text; P < every prompt), `input_ids` and `labels`
        [B, L] of the rest, and `attention_mask` [B, P + L].
    """
    shared = min(common_prefix([row.ids for row in rows]), min(row.prompt_length for row in rows) - 1)
    shared = shared if share else 0
    width = max(len(row.ids) for row in rows) - shared
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), shared + width), dtype=torch.long)
    for index, row in enumerate(rows):
        own = torch.tensor(row.ids[shared:], dtype=torch.long)
        ids[index, : len(own)] = own
        labels[index, row.prompt_length - shared : len(own)] = own[row.prompt_length - shared :]
        mask[index, : shared + len(own)] = 1
    prefix = torch.tensor(rows[0].ids[:shared], dtype=torch.long)
    return {"prefix": prefix, "input_ids": ids, "labels": labels, "attention_mask": mask}
