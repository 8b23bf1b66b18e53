"""Conversations from a JSON Lines file: `messages` (role, content), as AceMath's training sets have them."""

import json
import random
from collections.abc import Collection
from pathlib import Path

from acemath_core.prompts import ChatMessage
from acemath_training.data.rows import Encoder, Row, conversation_row
from acemath_training.errors import DataError


class Conversations:
    """Rows of a file by index: epoch after epoch, each in its own seeded order. Lines are read when asked for."""

    def __init__(self, path: Path, encoder: Encoder, end_of_turn: int, seed: int) -> None:
        """Index the file's lines.

        Raises:
            DataError: the file cannot be read or is empty.
        """
        self._path, self._encoder, self._end_of_turn, self._seed = path, encoder, end_of_turn, seed
        try:
            self._offsets = _line_offsets(path)
        except OSError as error:
            raise DataError(f"cannot read conversations: {error}") from error
        if not self._offsets:
            raise DataError(f"{path} holds no conversations")
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Conversations in the file."""
        return len(self._offsets)

    def conversation(self, number: int) -> Row:
        """The file's conversation `number`, whatever the order of an epoch.

        Raises:
            DataError: the line is not a conversation that ends in an assistant turn.
        """
        return conversation_row(self._encoder, self._messages(number), self._end_of_turn)

    def leave_out(self, numbers: Collection[int]) -> None:
        """Go on without these conversations; the others keep their order in the file.

        Raises:
            DataError: nothing is left.
        """
        self._offsets = [offset for number, offset in enumerate(self._offsets) if number not in numbers]
        if not self._offsets:
            raise DataError(f"{self._path} holds no conversation that can be used")

    def row(self, index: int) -> Row:
        """Row `index`; beyond the file's length the next epoch begins.

        Raises:
            DataError: the line is not a conversation that ends in an assistant turn.
        """
        epoch, place = divmod(index, len(self._offsets))
        if self._order[0] != epoch:
            order = list(range(len(self._offsets)))
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self.conversation(self._order[1][place])

    def _messages(self, line: int) -> list[ChatMessage]:
        with self._path.open("rb") as file:
            file.seek(self._offsets[line])
            text = file.readline()
        try:
            messages: list[ChatMessage] = json.loads(text)["messages"]
            last = messages[-1]["role"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{self._path}, line {line + 1}: not a conversation: {error}") from error
        if last != "assistant":
            raise DataError(f"{self._path}, line {line + 1}: the last turn is not the assistant's")
        return messages


def _line_offsets(path: Path) -> list[int]:
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets
