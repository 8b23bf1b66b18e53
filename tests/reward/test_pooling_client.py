"""Answers that are not the scores that were asked for: each is an error that says how, and none is a score."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from acemath_reward.pooled.client import NoAnswer, PoolingClient, Question, WrongAnswer

NAME = "rew@s1-0123456789ab"
ITEM = {"index": 0, "label": "LABEL_0", "probs": [0.25], "num_classes": 1}


class Scripted(ThreadingHTTPServer):
    """Answers every POST with `answer` and keeps what it was sent; None: only when `released`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: bytes | None = b""
        self.sent: Any = None
        self.released = threading.Event()

    def client(self, question: Question = Question.SEQUENCE) -> PoolingClient:
        return PoolingClient("127.0.0.1", self.server_port, NAME, None, question)


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.answer is None:
            self.server.released.wait(30)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.released.set()
        made.shutdown()
        thread.join(10)


def test_token_ids_are_asked_for_raw_scores(server: Scripted) -> None:
    server.answer = json.dumps({"model": NAME, "data": [ITEM, ITEM | {"index": 1, "probs": [-1]}]}).encode()
    assert server.client().score([(1, 2), (3,)], 30) == [0.25, -1.0]
    assert server.sent == {"model": NAME, "input": [[1, 2], [3]], "use_activation": False}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"model": "other@s1-0", "data": [ITEM]}, "answers as"),
        ({"model": NAME, "data": []}, "0 items for 1"),
        ({"model": NAME, "data": [ITEM, ITEM | {"index": 1}]}, "2 items for 1"),
        ({"model": NAME, "data": [ITEM | {"index": 1}]}, "out of place"),
        ({"model": NAME, "data": [ITEM | {"probs": [0.5, 0.5]}]}, "out of place"),
        ({"model": NAME, "data": [ITEM | {"probs": []}]}, "not one of /classify"),
        ({"model": NAME, "data": [ITEM | {"probs": ["0.5"]}]}, "not one of /classify"),
        ({"model": NAME, "data": [ITEM | {"probs": [1e300]}]}, "not one of /classify"),
        ({"model": NAME, "data": None}, "not one of /classify"),
        ([], "not one of /classify"),
        ("x" * 100_000, "more than"),
    ],
)
def test_another_answer_is_no_score(server: Scripted, answer: Any, said: str) -> None:
    server.answer = json.dumps(answer).encode()
    with pytest.raises(WrongAnswer, match=said):
        server.client().score([(1, 2)], 30)


def test_of_a_number_for_each_token_the_last_is_the_score(server: Scripted) -> None:
    item = {"index": 0, "object": "pooling", "data": [[0.5], [-0.25]]}
    server.answer = json.dumps({"model": NAME, "data": [item]}).encode()
    assert server.client(Question.TOKENS).score([(1, 2)], 30) == [-0.25]
    assert server.sent["task"] == "token_classify" and server.sent["use_activation"] is False
    with pytest.raises(WrongAnswer, match="out of place"):
        server.client(Question.TOKENS).score([(1, 2, 3)], 30)  # a part of the sequence


def test_what_is_no_json_is_no_score(server: Scripted) -> None:
    server.answer = b"<html>"
    with pytest.raises(WrongAnswer, match="not one of /classify"):
        server.client().score([(1, 2)], 30)


def test_a_wait_has_its_limit(server: Scripted) -> None:
    server.answer = None
    with pytest.raises(NoAnswer) as late:
        server.client().score([(1, 2)], 0.1)
    assert late.value.late
