"""What is asked of a vLLM pooling server, over a connection for each question; blocks, and every wait has a limit.

Shapes are those of vLLM 0.32's `POST /classify`.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

from acemath_reward.ports import TokenIds

_ITEM_BYTES = 512  # of an answer, for each candidate: an index, a label's name, one number
_REST_BYTES = 65_536


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
    """

    def __init__(self, host: str, port: int, name: str, key: SecretStr | None) -> None:
        self._host, self._port, self._name = host, port, name
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

    def classify(self, sequences: Sequence[TokenIds], timeout: float) -> list[float]:
        """The raw float32 score of each sequence, at its last token.

        Args:
            sequences: token ids, scored as they are.
            timeout: seconds without a byte of the answer.

        Raises:
            NoAnswer: the server is away, or took too long.
            WrongAnswer: it refused, or its answer is not one score for each sequence by this version.
        """
        body = {"model": self._name, "input": [list(ids) for ids in sequences], "use_activation": False}
        sent, room = json.dumps(body).encode(), _REST_BYTES + _ITEM_BYTES * len(sequences)
        status, answer = self._answer("POST", "/classify", sent, timeout, room)
        if status != 200:
            raise WrongAnswer(f"vLLM answered {len(sequences)} candidates with HTTP {status}")
        return self._scores(answer, len(sequences))

    def _scores(self, answer: bytes, count: int) -> list[float]:
        try:
            document = json.loads(answer)
            named, items = document["model"], document["data"]
            scores = [_score(item, index) for index, item in enumerate(items)]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise WrongAnswer(f"vLLM's answer is not one of /classify ({type(error).__name__})") from error
        if named != self._name:
            raise WrongAnswer(f"the server answers as {named!r}, not as {self._name!r}")
        if len(scores) != count:
            raise WrongAnswer(f"vLLM gave {len(scores)} scores for {count} candidates")
        return scores

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


def _score(item: Any, index: int) -> float:
    """The one number of an item; vLLM's head computes in float32, and JSON keeps every bit of that."""
    (value,) = item["probs"]
    if item["index"] != index or not isinstance(value, float | int):
        raise ValueError("not an item of this place")
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
