"""The bound on candidates in flight in a gateway of its own, before doubles that say what they hold."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from loopback_ports import free_run

from doubles.whole_gateway import WholeGateway, whole_gateway

PROBLEM = {"problem": "What is 3 * 8?", "n": 64, "max_tokens": 32}


def become(whole: WholeGateway, places: int) -> None:
    """Wait until there are so many: the gateway looks at its replicas once a second."""
    until = time.monotonic() + 30
    while (now := whole.metric("acemath_gateway_max_sequences")) != places:
        assert time.monotonic() < until, f"{now} places instead of {places}"
        time.sleep(0.05)


def test_it_is_what_the_replica_says_at_the_length_that_answers_have(tmp_path: Path) -> None:
    with whole_gateway(tmp_path, free_run(3)) as whole, httpx.Client(base_url=whole.url, timeout=60) as http:
        become(whole, 91)  # 46,592 tokens of cache at 512 each
        for _ in range(3):
            assert http.post("/v1/solve", json=PROBLEM).status_code == 200
        become(whole, 96)  # shorter ones: now the batch is the bound


def test_the_largest_request_gets_in_whatever_the_replica_says(tmp_path: Path) -> None:
    with whole_gateway(tmp_path, free_run(3), held={"max_sequences": 5, "something_new": 1}) as whole:
        become(whole, 64)
        with httpx.Client(base_url=whole.url, timeout=60) as http:
            answer = http.post("/v1/solve", json=PROBLEM)
        assert (answer.status_code, answer.json()["n_generated"]) == (200, 64)
