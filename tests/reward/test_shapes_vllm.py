"""vLLM's own classes parse our answers and give the same documents back, and its requests are what we accept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reward.shapes import CANDIDATES, PROBLEM, Client, rendered, serving

from acemath_reward.shapes.classify import ClassifyRequest
from acemath_reward.shapes.rerank import RerankRequest
from acemath_reward.shapes.score import PairScoreRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # importing vLLM takes many seconds

BODIES: dict[str, dict[str, Any]] = {
    "/classify": {"input": [rendered(one) for one in CANDIDATES]},
    "/score": {"text_1": PROBLEM, "text_2": CANDIDATES},
    "/rerank": {"query": PROBLEM, "documents": CANDIDATES, "top_n": 3},
}
RESPONSES = {
    "/classify": ("classify", "ClassificationResponse"),
    "/score": ("scoring", "ScoreResponse"),
    "/rerank": ("scoring", "RerankResponse"),
}
REQUESTS = [
    ("classify", "ClassificationCompletionRequest", BODIES["/classify"], ClassifyRequest),
    ("classify", "ClassificationChatRequest", {"messages": [{"role": "user", "content": "x"}]}, ClassifyRequest),
    ("scoring", "ScoreTextRequest", BODIES["/score"], PairScoreRequest),
    ("scoring", "ScoreQueriesDocumentsRequest", {"queries": "x", "documents": "y"}, PairScoreRequest),
    ("scoring", "ScoreQueriesItemsRequest", {"queries": "x", "items": "y"}, PairScoreRequest),
    ("scoring", "ScoreDataRequest", {"data_1": "x", "data_2": "y"}, PairScoreRequest),
    ("scoring", "RerankRequest", BODIES["/rerank"], RerankRequest),
]


def vllm_reads(documents: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    """What vLLM's classes make of the documents; in a process of its own, since the import changes the process."""
    script = Path(__file__).with_name("vllm_reads.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(documents), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parsed: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return parsed


def answers(client: Client) -> list[Any]:
    return [client.ok(path, **body) for path, body in BODIES.items()]


def test_vllm_reads_our_answers_and_we_know_its_requests(llama: Path, tmp_path: Path) -> None:
    with serving(llama, tmp_path) as client:
        ours = answers(client)
    asked = [(module, name, body) for module, name, body, _ in REQUESTS]
    parsed = vllm_reads([*[(*RESPONSES[path], one) for path, one in zip(BODIES, ours, strict=True)], *asked])
    for mine, theirs in zip(ours, parsed, strict=False):
        assert theirs["document"] == mine, "no field is missing, and none is ours alone"
        assert not theirs["extra"]
    for (_, _, _, ours_class), theirs in zip(REQUESTS, parsed[len(ours) :], strict=True):
        assert set(theirs["fields"]) <= set(ours_class.model_fields), (
            "every field of vLLM is honoured or refused by name"
        )
