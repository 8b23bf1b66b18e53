"""What is asked of a vLLM pooling server, over a connection for each question; blocks, and every wait has a limit.

Shapes are those of vLLM 0.32's `POST /classify` and `POST /pooling`.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import SecretStr

from acemath_reward.ports import TokenIds

_ITEM_BYTES = 512  # of an answer, for each candidate: an index, a label's name, one number
_TOKEN_BYTES = 64  # of an answer, for each token: one number in brackets
_REST_BYTES = 65_536


class Question(StrEnum):
    """The path that gives a checkpoint's scores."""

    SEQUENCE = "/classify"
    """One number for each sequence: heads of one layer."""
    TOKENS = "/pooling"
    """One for each token, the last of which is the score: Qwen2.5-Math-RM's head of two layers."""


class NoAnswer(Exception):
    """Nobody answered, or not in time.

    Attributes:
        late: it was asked and did not answer within the limit.
    """

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class WrongAnswer(Exception):
    """An answer that is not the scores that were asked for; the message says how, and nothing of what was sent."""


class PoolingClient:
    """Asks one server.

    Args:
        host: loopback address.
        port: where it listens.
        name: the served model that it must answer as.
        key: the internal key.
        question: how its checkpoint is asked.
    """

    def __init__(
        self, host: str, port: int, name: str, key: SecretStr | None, question: Question = Question.SEQUENCE
    ) -> None:
        self._host, self._port, self._name, self._question = host, port, name, question
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key.get_secret_value()}"

    def healthy(self, timeout: float) -> bool | None:
        """True: it serves; False: it says that its engine is dead; None: it does not answer (yet)."""
        try:
            status, _ = self._answer("GET", "/health", None, timeout, _REST_BYTES)
        except NoAnswer:
            return None
        return status == 200

    def score(self, sequences: Sequence[TokenIds], timeout: float) -> list[float]:
        """The raw float32 score of each sequence, at its last token.

        Args:
            sequences: token ids, scored as they are.
            timeout: seconds without a byte of the answer.

        Raises:
            NoAnswer: the server is away, or took too long.
            WrongAnswer: it refused, or its answer is not one score for each sequence by this version.
        """
        body = {"model": self._name, "input": [list(ids) for ids in sequences], "use_activation": False}
        room = _REST_BYTES + _ITEM_BYTES * len(sequences)
        if self._question is Question.TOKENS:
            body["task"], room = "token_classify", room + _TOKEN_BYTES * sum(map(len, sequences))
        status, answer = self._answer("POST", self._question, json.dumps(body).encode(), timeout, room)
        if status != 200:
            raise WrongAnswer(f"vLLM answered {len(sequences)} candidates with HTTP {status}")
        return self._scores(answer, sequences)

    def _scores(self, answer: bytes, sequences: Sequence[TokenIds]) -> list[float]:
        try:
            document = json.loads(answer)
            named, items = document["model"], document["data"]
            found = [self._raw(item) for item in items]
            scores = [_float32(values[-1]) for values in found]
            places = [item["index"] for item in items]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
            raise WrongAnswer(f"vLLM's answer is not one of {self._question} ({type(error).__name__})") from error
        if named != self._name:
            raise WrongAnswer(f"the server answers as {named!r}, not as {self._name!r}")
        sizes = [len(ids) if self._question is Question.TOKENS else 1 for ids in sequences]
        if places != list(range(len(sequences))) or list(map(len, found)) != sizes:
            raise WrongAnswer(f"vLLM gave {len(scores)} items for {len(sequences)} candidates, or some out of place")
        return scores

    def _raw(self, item: Any) -> list[Any]:
        """The numbers of an item, in order; each token's is in brackets of its own."""
        if self._question is Question.SEQUENCE:
            return list(item["probs"])
        return [value for (value,) in item["data"]]

    def _answer(self, method: str, path: str, body: bytes | None, timeout: float, room: int) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            content = response.read(room + 1)
        except TimeoutError as error:
            raise NoAnswer(f"vLLM did not answer {path} within {timeout:g} s", late=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"vLLM did not answer {path}: {type(error).__name__}") from error
        finally:
            connection.close()
        if len(content) > room:
            raise WrongAnswer(f"vLLM's answer to {path} has more than {room} bytes")
        return response.status, content


def _float32(value: Any) -> float:
    """vLLM's head computes in float32, and JSON keeps every bit of that."""
    if not isinstance(value, float | int):
        raise ValueError("not a number")
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
