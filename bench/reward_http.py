"""What a call over HTTP costs beside the computation: tokenising, queueing, JSON, the socket.

    python -m bench.reward_http URL --pool FILE.jsonl[.gz] [--key-file FILE] [--calls 100] [--per-problem 8]

One call at a time at an idle service, a problem with its candidates each. The service says how long it computed
(`timings.compute_seconds`); the rest of the time that the client waited is the overhead, for one candidate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import httpx

from bench.reward import machine
from bench.reward_exactness import Problem, read_problems


def overheads(client: httpx.Client, problems: list[Problem]) -> list[float]:
    """Milliseconds a candidate of each call."""
    found = []
    for problem, candidates in problems:
        body = {"problem": problem, "candidates": candidates}
        began = time.perf_counter()
        answer = client.post("/v1/score", json=body).raise_for_status().json()
        waited = time.perf_counter() - began
        found.append((waited - answer["timings"]["compute_seconds"]) / len(candidates) * 1000)
    return found


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--per-problem", type=int, default=8)
    options = parser.parse_args()
    headers = {"authorization": f"Bearer {options.key_file.read_text().strip()}"} if options.key_file else {}
    problems = read_problems(options.pool, options.calls, options.per_problem)
    busy, began = machine.busy_seconds(), time.monotonic()
    with httpx.Client(base_url=options.url, headers=headers, timeout=600, trust_env=False) as client:
        overheads(client, problems[:3])  # connections, caches
        found = sorted(overheads(client, problems))
    cut = statistics.quantiles(found, n=100, method="inclusive")
    result = {"calls": len(found), "candidates_a_call": options.per_problem, "unit": "ms a candidate"}
    result |= {name: round(cut[at - 1], 3) for name, at in (("median", 50), ("p90", 90), ("p99", 99))}
    result["cores_busy"] = round((machine.busy_seconds() - busy) / (time.monotonic() - began), 2)
    print(json.dumps(result | {"machine": machine.described()}, indent=2))


if __name__ == "__main__":
    main()
