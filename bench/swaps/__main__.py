"""A hundred releases under load: does a request fail, or see two versions, and does anything stay behind?

    python -m bench.swaps http://127.0.0.1:8080 --registry .local/registry --pid PID [--swaps 100] [--out FILE.json]

Beside a running stack (`make run`; PID is its first process). Each release is a new policy that writes one letter of
its own and a new random reward model, so every candidate shows who wrote it and every score who gave it; what the score
must be is computed here, bit for bit, by the engine in process. Clients ask without a pause. Each swap: publish,
promote, wait for the first answer by the new release, wait until the old versions are gone. At the end the channel
points where it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from acemath_registry import Registry
from bench.swaps.load import PROBLEMS, Load, Release
from bench.swaps.memory import Watch
from bench.swaps.publisher import Publisher
from bench.swaps.report import report

PATIENCE = 600.0
LIVES_SECONDS = 120.0
CHANNEL = "default"


async def until(registry: Registry, true: Callable[[], bool], release: Release, what: str) -> None:
    """Wait for a state; fails after `PATIENCE` seconds, or when one of the release's versions was rejected."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        known = slots(registry)
        for slot in (known.get(version, {}) for version in (release.policy, release.reward)):
            if slot.get("state") == "rejected":
                raise SystemExit(f"{slot['version']} is rejected: {slot['reason']}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:.0f} s")
        await asyncio.sleep(0.1)


def slots(registry: Registry) -> dict[str, dict[str, Any]]:
    """What policy and reward service say of each version; a replica that is gone leaves its last word."""
    statuses = [*registry.statuses("policy").values(), *registry.statuses("reward").values()]
    living = [status for status in statuses if time.time() - status["at"] < LIVES_SECONDS]
    return {slot["version"]: slot for status in living for slot in status.get("slots", [])}


def alone(registry: Registry, release: Release) -> bool:
    """Whether its versions are the only ones that they have."""
    serving = {version for version, slot in slots(registry).items() if slot["state"] not in ("rejected", "retired")}
    return serving == {release.policy, release.reward}


async def swap(registry: Registry, publisher: Publisher, load: Load) -> dict[str, float]:
    """One release more; seconds of its parts."""
    began = time.monotonic()
    release = await asyncio.to_thread(publisher.make)
    load.releases[release.id] = release
    published = time.monotonic()
    generation = registry.channel(CHANNEL).generation
    registry.promote(CHANNEL, release.id, expected_generation=generation, by="bench.swaps")
    promoted = time.monotonic()
    await until(registry, lambda: release.id in load.first, release, f"an answer by {release.id}")
    await until(registry, lambda: alone(registry, release), release, f"only {release.id} in the slots")
    first = load.first[release.id]
    return {
        "publish": published - began,
        "promote_to_first_answer": first - promoted,
        "first_answer_to_old_gone": time.monotonic() - first,
        "promoted_at": promoted,
        "first_at": first,
    }


@contextlib.asynccontextmanager
async def clients(load: Load, count: int) -> AsyncIterator[None]:
    """So many of them, until the block ends."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(load.run(number))
        try:
            yield
        finally:
            load.ending = True


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All swaps, with a calm minute before and after."""
    registry, watch = Registry(options.registry), Watch(options.pid)
    before = registry.channel(CHANNEL)
    publisher = Publisher(registry, options.max_tokens)
    headers = {"authorization": f"Bearer {options.key_file.read_text().strip()}"} if options.key_file else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=180, limits=limits) as client:
        load = Load(client, options.n, options.max_tokens)
        known = before.release
        swaps, memory = [], []
        try:
            first = await asyncio.to_thread(publisher.make)
            load.releases[first.id] = first
            registry.promote(CHANNEL, first.id, expected_generation=before.generation, by="bench.swaps")
            await until(registry, lambda: alone(registry, first), first, f"only {first.id} in the slots")
            await _served(client, first.id)
            async with clients(load, options.clients):
                await asyncio.sleep(options.calm)
                calm_end = time.monotonic()
                memory.append(watch.now())
                for number in range(1, options.swaps + 1):
                    swaps.append(await swap(registry, publisher, load))
                    memory.append(watch.now())
                    print(
                        f"{number}/{options.swaps} swaps, {len(load.answers)} answers, {len(load.failures)} failures, "
                        f"{swaps[-1]['promote_to_first_answer']:.1f} s to the first answer, {memory[-1]}",
                        flush=True,
                    )
                await asyncio.sleep(options.calm)
                memory.append(watch.now())
        finally:
            generation = registry.channel(CHANNEL).generation
            registry.promote(CHANNEL, known, expected_generation=generation, by="bench.swaps")
    return {"clients": options.clients, "n": options.n} | report(load, swaps, memory, calm_end)


async def _served(client: httpx.AsyncClient, release: str) -> None:
    """Wait until the gateway answers with a release."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = await client.post("/v1/solve", json={"problem": PROBLEMS[0], "n": 1, "max_tokens": 4})
        if answer.status_code == 200 and answer.json()["release"] == release:
            return
        await asyncio.sleep(0.2)
    raise SystemExit(f"no answer by {release} within {PATIENCE:.0f} s")


def main() -> None:
    """Read the arguments, measure, print, write; status 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the stack's first process")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--calm", type=float, default=60.0, help="seconds without a swap, before and after")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("each", "memory")}, indent=1))
    raise SystemExit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
