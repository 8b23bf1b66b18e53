"""The reward service under more than it can do: does it lose a request, answer one late, leak, or change a score?

    python -m bench.soak URL [URL …] --pool FILE.jsonl[.gz] [--seconds 3600] [--load 2.0] [--out FILE.json]

Each URL is one reward service with the same release; two of them are two workers. FILE has one object a line,
{"problem": text, "candidates": [{"text": text}, …]}. Three parts:

1. Every candidate alone, one call each, at the first service: the reference, bit for bit.
2. A closed loop of `--callers`: what the services can do, in calls a second.
3. `--load` times as many calls a second, arriving at random (Poisson), for `--seconds`: each is a random grouping of
   a problem's candidates (any order, repeats too), by a random way (whole, streamed, `/score`, live in random pieces),
   at a random service, with a random deadline; some callers leave early. Every score is compared with its reference.

Each call ends in exactly one of: answered, refused with a code, left (by plan), late, or lost. Late is an answer after
the deadline; lost is no answer, or one without a code. Memory is each service's own `process_resident_memory_bytes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.soak.calls import Call, Caller, Ended, Outcome, Pool, read_pool
from bench.soak.report import minutes_of, show, summary

IN_FLIGHT = 400
MEMORY_SECONDS = 10.0


async def references(caller: Caller, pool: Pool) -> dict[tuple[int, int], float]:
    """Each candidate's score, alone in its call."""
    found: dict[tuple[int, int], float] = {}
    for number, (problem, candidates) in enumerate(pool):
        for index, text in enumerate(candidates):
            (found[number, index],) = await caller.whole(caller.urls[0], problem, [text], deadline=120.0)
        print(f"\rreference: {number + 1}/{len(pool)} problems", end="", flush=True)
    print()
    return found


async def capacity(caller: Caller, draw: random.Random, seconds: float, callers: int) -> float:
    """Calls a second in a closed loop."""
    until, done = time.monotonic() + seconds, 0

    async def loop() -> None:
        nonlocal done
        while time.monotonic() < until:
            ended = await caller.run(Call.drawn(draw, caller.pool, caller.urls, deadline=120.0, leaves=0.0))
            assert ended.outcome is Outcome.ANSWERED, ended
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(loop() for _ in range(callers)))
    return done / (time.monotonic() - began)


class Soak:
    """Open arrivals for a time; keeps how every call ended."""

    def __init__(self, caller: Caller, draw: random.Random, rate: float) -> None:
        self._caller, self._draw, self._rate = caller, draw, rate
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self.ended: list[Ended] = []
        self.memory: list[dict[str, float]] = []
        self.held_back = 0
        self.began = time.monotonic()

    async def run(self, seconds: float) -> None:
        """Send until the time is over, then wait for what is under way."""
        until, next_call = self.began + seconds, self.began
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            calls: set[asyncio.Task[None]] = set()
            while (next_call := next_call + self._draw.expovariate(self._rate)) < until:
                await asyncio.sleep(next_call - time.monotonic())
                self.held_back += self._places.locked()
                await self._places.acquire()
                task = group.create_task(self._one())
                calls.add(task)
                task.add_done_callback(calls.discard)
            if calls:
                await asyncio.wait(calls)
            watching.cancel()

    async def _one(self) -> None:
        try:
            sent = time.monotonic() - self.began
            ended = await self._caller.run(Call.drawn(self._draw, self._caller.pool, self._caller.urls))
            self.ended.append(ended.at(sent))
        finally:
            self._places.release()

    async def _watch(self) -> None:
        while True:
            row = {"at": time.monotonic() - self.began}
            for number, url in enumerate(self._caller.urls):
                row[f"rss_{number}"] = await self._caller.memory(url)
            self.memory.append(row)
            outcomes = Counter(str(ended.outcome) for ended in self.ended)
            wrong = sum(ended.changed for ended in self.ended)
            megabytes = [round(v / 2**20) for k, v in row.items() if k != "at"]
            print(f"\r{row['at']:6.0f} s {dict(outcomes)} changed {wrong} memory {megabytes} MiB", end="", flush=True)
            await asyncio.sleep(MEMORY_SECONDS)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All three parts."""
    draw = random.Random(options.seed)
    pool = read_pool(options.pool, options.problems, options.per_problem)
    key = options.key_file.read_text().strip() if options.key_file else None
    load = os.getloadavg()[0]
    async with httpx.AsyncClient(timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
        caller = Caller(client, options.urls, key, pool)
        caller.references.update(await references(caller, pool))
        able = await capacity(caller, draw, options.capacity_seconds, options.callers)
        print(
            f"capacity: {able:.1f} calls a second; now {able * options.load:.1f} for {options.seconds:.0f} s",
            flush=True,
        )
        soak = Soak(caller, draw, able * options.load)
        try:
            await soak.run(options.seconds)
        finally:
            print()
    return {
        "capacity_calls_per_second": round(able, 2),
        "load": options.load,
        "seconds": options.seconds,
        "services": len(options.urls),
        "distinct_candidates": len(caller.references),
        "spread_of_scores": round(statistics.pstdev(caller.references.values()), 4),
        "held_back_by_this_client": soak.held_back,
        **summary(soak.ended, soak.memory),
        "minutes": minutes_of(soak.ended, soak.memory),
        "machine": {"cores": os.cpu_count(), "load_before": load},
    }


def main() -> None:
    """Read the arguments, measure, print, write; status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--per-problem", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--capacity-seconds", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--load", type=float, default=2.0, help="times the measured capacity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    sys.exit(0 if result["promises_kept"] else 1)


if __name__ == "__main__":
    main()
