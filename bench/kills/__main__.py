"""An hour of mixed load while one part after the other is killed: is every request answered or told why not?

    python -m bench.kills http://127.0.0.1:8080 [URL ...] --problems FILE.jsonl --pid PID [--seconds 3600]

Beside a running stack (`make run`; PID is its first process). Callers arrive at random (Poisson) at every door: solve
and chat, streamed or not, adaptive, with a mistake, some large, some with a key that has a quota (`--quota-key-file`),
and some hang up. Every two minutes there is a job. Every so often the next of vLLM, the reward service, Redis, the
policy agent and the gateway gets a SIGKILL; the stack brings it back. A caller whose connection breaks sends the same
again, to the next of the gateways, with its Idempotency-Key where the door takes one.

Requests sent = answered + refused with a code + errors in the stream + left + lost; lost must be 0, and every line of
every job must have one result. At the end nothing may be left behind: the gauges of each gateway are read when it is
idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.kills.calls import Call, Ended, Outcome, run
from bench.kills.jobs import Jobs, submitting
from bench.reward import machine

VICTIMS = {
    "vllm": "VLLM::EngineCore",
    "reward": "acemath_reward",
    "redis": "-server",
    "policy": "acemath_policy",
    "gateway": "acemath_gateway",
}
"""How the program, or the module, that a part runs ends; of vLLM's processes the one that computes."""
GAUGES = ("queued_requests", "inflight_requests", "inflight_sequences", "scoring_queue", "leases")
IN_FLIGHT = 200
BACK_SECONDS = 300.0


class Stack:
    """The processes, and whether they answer."""

    def __init__(self, pid: int, client: httpx.AsyncClient) -> None:
        self._root, self._client = psutil.Process(pid), client

    def find(self, part: str) -> psutil.Process:
        """The process of a part.

        Raises:
            LookupError: there is none.
        """
        for process in self._root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if is_named(process.cmdline(), VICTIMS[part]):
                    return process
        raise LookupError(f"no process of {part} below {self._root.pid}")

    async def kill(self, part: str) -> dict[str, Any]:
        """Kill it, wait until the gateway is ready again; what happened and how long it took."""
        process = self.find(part)
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [process], 10)
        solved = await self._solves(began + BACK_SECONDS)
        return {"part": part, "pid": process.pid, "seconds_until_solved": solved and round(solved - began, 2)}

    async def _solves(self, until: float) -> float | None:
        body = {"problem": "What is 7 + 5?", "n": 1, "max_tokens": 32, "deadline_seconds": 20}
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                if (await self._client.post("/v1/solve", json=body)).status_code == 200:
                    return time.monotonic()
            await asyncio.sleep(0.2)
        return None

    async def gauges(self, url: str = "") -> dict[str, float]:
        """Of a gateway, the first one when left out, those that must be 0 when it is idle."""
        text = (await self._client.get(url + "/metrics")).text
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows if any(f"gateway_{gauge}" in name for gauge in GAUGES)}


def is_named(line: list[str], part: str) -> bool:
    """Whether the program or the module that a command runs is this one.

    A process that names itself (Redis, vLLM) has all of it, with what comes behind the program, in the first word.
    """
    own = line[0].split() if line else []
    words = own[:1] + [after for before, after in itertools.pairwise(line) if before == "-m"]
    return any(word.endswith(part) for word in words)


async def load(
    client: httpx.AsyncClient, options: argparse.Namespace, problems: list[str], quota_key: str
) -> list[Ended]:
    """Callers for a time, then wait for those under way; how each ended."""
    draw = random.Random(options.seed)
    began, found, places = time.monotonic(), list[Ended](), asyncio.Semaphore(IN_FLIGHT)
    shown = began

    async def one(call: Call) -> None:
        async with places:
            found.append(await run(call, client, began, options.urls, quota_key))

    next_call = began
    async with asyncio.TaskGroup() as group:
        while (next_call := next_call + draw.expovariate(options.rate)) < began + options.seconds:
            await asyncio.sleep(next_call - time.monotonic())
            group.create_task(one(Call.drawn(draw, problems, (1, 2, 4, 8))))
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"{shown - began:6.0f} s {dict(Counter(str(end.outcome) for end in found))}", flush=True)
    return found


async def killing(stack: Stack, parts: list[str], every: float, seconds: float) -> list[dict[str, Any]]:
    """One part after the other, every so often."""
    began, killed = time.monotonic(), list[dict[str, Any]]()
    for number, part in enumerate(itertools.cycle(parts), 1):
        at = number * every
        if at > seconds - every / 2:
            return killed
        await asyncio.sleep(began + at - time.monotonic())
        killed.append({"at": round(at, 1)} | await stack.kill(part))
        print(f"killed: {killed[-1]}", flush=True)
    return killed


def bearer(file: Path | None) -> str:
    """The key in a file; nothing without one."""
    return file.read_text().strip() if file else ""


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, jobs and kills side by side."""
    problems = [json.loads(line)["problem"] for line in options.problems.read_text().splitlines()]
    headers = {"authorization": f"Bearer {bearer(options.key_file)}"} if options.key_file else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.urls[0], headers=headers, timeout=None, limits=limits) as client:
        stack = Stack(options.pid, client)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(load(client, options, problems, bearer(options.quota_key_file)))
            jobs = group.create_task(
                submitting(client, options.urls, options.jobs_every, options.seconds, problems, options.seed)
            )
            kills = group.create_task(killing(stack, options.parts.split(","), options.every, options.seconds))
        await asyncio.sleep(5)
        return summary(loading.result(), kills.result(), jobs.result()) | {
            "rate": options.rate,
            "seconds": options.seconds,
            "gauges_at_the_end": [await stack.gauges(url) for url in options.urls],
            "machine": machine.described(),
        }


def summary(ended: list[Ended], kills: list[dict[str, Any]], jobs: Jobs) -> dict[str, Any]:
    """Counts by outcome, door and code; `lost` is everything that is not accounted for."""
    doors: dict[str, Counter[str]] = {}
    for end in ended:
        doors.setdefault(end.door, Counter())[end.outcome] += 1
    took = sorted(end.seconds for end in ended if end.outcome is Outcome.ANSWERED)
    return {
        "sent": len(ended),
        "outcomes": dict(Counter(str(end.outcome) for end in ended)),
        "by_door": {door: dict(count) for door, count in sorted(doors.items())},
        "codes": dict(Counter(f"{end.outcome}: {end.code}" for end in ended if end.code).most_common()),
        "sent_again": sum(end.resent > 0 for end in ended),
        "seconds_of_answered": {share: round(took[int(len(took) * share)], 2) for share in (0.5, 0.9, 0.99)}
        if took
        else {},
        "kills": kills,
        "jobs": jobs.summary(),
        "lost": [f"{end.door} at {end.at:.1f} s: {end.code}" for end in ended if end.outcome is Outcome.LOST]
        + jobs.lost,
    }


def main() -> None:
    """Read the arguments, measure, print, write; status 1 when a request was lost or a part did not come back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL", help="of a gateway; the first is the one that is killed")
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the stack's first process")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--quota-key-file", type=Path, help="an API key with quotas, for a tenth of the requests")
    parser.add_argument("--jobs-every", type=float, default=120.0, help="seconds from one job to the next; 0: none")
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--every", type=float, default=300.0, help="seconds from one kill to the next")
    parser.add_argument("--parts", default=",".join(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    back = all(kill["seconds_until_solved"] is not None for kill in result["kills"])
    raise SystemExit(0 if back and not result["lost"] else 1)


if __name__ == "__main__":
    main()
