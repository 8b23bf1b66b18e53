"""A gateway's wire on a real port: what the CLI says to it, and what it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TEXTS = [("3 × 8 = 24, so \\boxed{24}", "24", -1.5), ("24 - 5 = [19], \\boxed{19}", "19", 2.25)]
CANDIDATES = [
    {
        "index": index,
        "text": text,
        "answer": answer,
        "score": score,
        "finish_reason": "stop",
        "completion_tokens": 9 + index,
    }
    for index, (text, answer, score) in enumerate(TEXTS)
]
SOLUTION: dict[str, Any] = {
    "id": "sol-1", "object": "solution", "created": 1, "answer": "19", "solution": CANDIDATES[1]["text"], "score": 2.25,
    "selection": "best_of_n", "stop_reason": "complete", "degraded": False, "degraded_reason": None, "release": "r1",
    "models": {"policy": "p@s1-000000000000", "reward": "r@s1-000000000000"},
    "n_requested": 2, "n_generated": 2, "n_scored": 2, "candidates": CANDIDATES,
    "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    "timings": {"queue_seconds": 0.0, "first_candidate_seconds": 1.0, "last_candidate_seconds": 2.0,
                "last_score_seconds": 2.5, "select_seconds": 0.0, "total_seconds": 2.6},
}  # fmt: skip


def sse(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


GOOD_STREAM = (
    ": keep-alive\n\n"
    + "".join(sse("candidate.finished", {k: c[k] for k in ("index", "answer")}) for c in CANDIDATES)
    + "".join(sse("candidate.scored", {k: c[k] for k in ("index", "score")}) for c in CANDIDATES)
    + sse("candidate.finished", {"index": 99})
    + sse("solution", SOLUTION)
)


@dataclass
class FakeGateway:
    """Answers every POST with `body`; keeps what it was asked."""

    url: str = ""
    status: int = 200
    body: str = GOOD_STREAM
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            fake.keys.append(self.headers.get("authorization"))
            fake.paths.append(self.path)
            self.send_response(fake.status)
            self.send_header("content-type", "text/event-stream" if fake.status == 200 else "application/json")
            self.end_headers()
            self.wfile.write(fake.body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    thread.join(10)
    server.server_close()
