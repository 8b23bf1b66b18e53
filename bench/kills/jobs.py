"""Jobs beside the mixed load: every line of every job must have one result at the end, whoever was killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.kills.calls import AGAIN_SECONDS

LINES = 6
ASK_SECONDS = 2.0
LOST_SECONDS = 900.0
"""A job that has not ended so long after it was made is lost."""


@dataclass(slots=True)
class Jobs:
    """What became of the jobs.

    Attributes:
        lines: by state.
        runs: lines by how often they were worked on.
        lost: what was not accounted for, in words.
    """

    made: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    runs: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "made": self.made,
            "refused": dict(self.refused),
            "lines": dict(self.lines),
            "lines_by_runs": {str(runs): count for runs, count in sorted(self.runs.items())},
            "codes_of_failed_lines": dict(self.codes),
            "seconds": [round(seconds, 1) for seconds in sorted(self.seconds)],
            "lost": self.lost,
        }

    def ended(self, name: str, results: list[dict[str, Any]]) -> None:
        """Count the results of a job; a line without one, or with two, is lost."""
        numbers = [result["line"] for result in results]
        if numbers != list(range(1, LINES + 1)):
            self.lost.append(f"{name}: the results are of the lines {numbers}, not of 1 to {LINES}")
        for result in results:
            self.lines[result["state"]] += 1
            self.runs[result["runs"]] += 1
            if result["state"] == "failed":
                self.codes[result["error"]["code"]] += 1


async def submitting(
    client: httpx.AsyncClient, urls: Sequence[str], every: float, seconds: float, problems: Sequence[str], seed: int
) -> Jobs:
    """A job every so often; back when each has ended or is lost."""
    draw, found, began = random.Random(seed), Jobs(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        number = 0
        while every and number * every < seconds:
            await asyncio.sleep(began + number * every - time.monotonic())
            lines = [
                {"problem": draw.choice(problems), "n": 4, "max_tokens": 160, "deadline_seconds": 60}
                for _ in range(LINES)
            ]
            group.create_task(_one(client, urls, lines, f"job {number}", found))
            number += 1
    return found


async def _one(
    client: httpx.AsyncClient, urls: Sequence[str], lines: list[dict[str, Any]], name: str, found: Jobs
) -> None:
    began, body = time.monotonic(), "".join(json.dumps(line) + "\n" for line in lines)
    headers = {"content-type": "application/x-ndjson", "idempotency-key": str(uuid.uuid4())}
    try:
        async with asyncio.timeout(LOST_SECONDS):
            made = await _made(client, urls, body, headers, found)
            found.made += 1
            async for answer in _asked(client, urls, f"/v1/jobs/{made}"):
                if answer.json()["state"] not in ("queued", "running"):
                    break
            async for answer in _asked(client, urls, f"/v1/jobs/{made}/results"):
                found.ended(name, [json.loads(line) for line in answer.text.splitlines()])
                found.seconds.append(time.monotonic() - began)
                return
    except TimeoutError:
        found.lost.append(f"{name}: no end after {LOST_SECONDS:g} s")


async def _made(client: httpx.AsyncClient, urls: Sequence[str], body: str, headers: dict[str, str], found: Jobs) -> str:
    for number in range(10_000):
        with contextlib.suppress(httpx.TransportError):
            answer = await client.post(urls[number % len(urls)] + "/v1/jobs", content=body, headers=headers)
            if answer.status_code == 202:
                return str(answer.json()["id"])
            found.refused[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
            if answer.status_code not in (429, 503):
                raise AssertionError(f"a job was refused: {answer.text}")
        await asyncio.sleep(AGAIN_SECONDS)
    raise TimeoutError


async def _asked(client: httpx.AsyncClient, urls: Sequence[str], path: str) -> AsyncIterator[httpx.Response]:
    """Each answer with 200, from one gateway after the other, for ever."""
    for number in range(1_000_000):
        with contextlib.suppress(httpx.TransportError):
            answer = await client.get(urls[number % len(urls)] + path)
            if answer.status_code == 200:
                yield answer
        await asyncio.sleep(ASK_SECONDS)
