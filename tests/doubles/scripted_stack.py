"""A gateway and a reward service in one small HTTP server that answers from a script; for tests of their clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]
Script = Callable[[str, dict[str, Any]], Answer]
"""Path and body → HTTP status and answer. Called from several threads."""


@dataclass
class ScriptedStack:
    """The running server: where it is, and what it was asked."""

    url: str
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@contextmanager
def scripted_stack(script: Script) -> Iterator[ScriptedStack]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stack.requests.append((self.path, body))
            status, answer = script(self.path, body)
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            if status == 503:
                self.send_header("retry-after", "0.1")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is the test's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stack = ScriptedStack(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stack
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def solution(body: dict[str, Any], texts: list[str], scores: list[float | None], release: str = "r-1") -> Answer:
    """A gateway's answer to a solve request with these candidates."""
    rest = {"answer": None, "finish_reason": "stop"}
    candidates = [
        {"index": i, "text": text, "score": score, "completion_tokens": len(text), **rest}
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    seconds = ["queue_seconds", "first_candidate_seconds", "last_candidate_seconds", "last_score_seconds"]
    return 200, {
        "id": "solve-1",
        "created": 0,
        "answer": None,
        "solution": texts[0],
        "score": scores[0],
        "selection": "best_of_n",
        "stop_reason": "complete",
        "degraded": False,
        "degraded_reason": None,
        "release": release,
        "models": {"policy": "p@s1-0", "reward": "r@s1-0"},
        "n_requested": body["n"],
        "n_generated": len(texts),
        "n_scored": len(texts),
        "candidates": candidates,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "timings": dict.fromkeys([*seconds, "select_seconds", "total_seconds"], 0.1),
    }


def scores(values: list[float], model: str = "r@s1-0") -> Answer:
    """A reward service's answer with these scores."""
    return 200, {
        "model": model,
        "data": [{"index": i, "score": value, "tokens": 5} for i, value in enumerate(values)],
        "usage": {"prompt_tokens": 1, "candidate_tokens": 1, "total_tokens": 2},
        "timings": dict.fromkeys(["tokenize_seconds", "queue_seconds", "compute_seconds", "total_seconds"], 0.1),
    }


def refusal(status: int, message: str = "refused") -> Answer:
    """An error answer."""
    return status, {"error": {"message": message, "type": "error", "param": None, "code": None}}
