"""A bad release under load, and the watch that takes it back: in how long, and does a request fail for it?

    python -m bench.swaps.taken_back http://127.0.0.1:8080 --registry .local/registry [--prometheus URL] [--out FILE]

Beside a running stack with its Prometheus (`make run`). Clients ask all the time. After a calm while, whose scores give
the band, a release is promoted that has the channel's policy and a random reward model: whole, with nothing that a
replica could find wrong with it, and useless. `acemath registry watch run` looks at the figures and rolls back. At the
end the channel points where it did, and watches what it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file, save_file

from acemath_registry import ModelKind, PublishMetadata, Registry, Release
from acemath_registry.bands import Band, Bands, Measure
from bench.reward import machine
from bench.swaps.models import write_reward
from bench.swaps.trained import PROBLEMS, Seen, client

CHANNEL, NAME, BY = "default", "bench-taken-back", "bench.swaps.taken_back"
CLIENTS, N, CALM_SECONDS, PATIENCE = 4, 4, 45.0, 600.0
WINDOW_SECONDS, INTERVAL_SECONDS = 60, 5.0  # Prometheus looks every 15 s
WEIGHTS, LOUD = "model.safetensors", 20.0


async def calm_scores(http: httpx.AsyncClient) -> list[float]:
    """Scores of the release that serves."""
    found = list[float]()
    until = time.monotonic() + CALM_SECONDS
    while time.monotonic() < until:
        body = {"problem": PROBLEMS[len(found) % 2], "n": N, "max_tokens": 96, "candidates": "scores"}
        answer = (await http.post("/v1/solve", json=body)).raise_for_status().json()
        found += [one["score"] for one in answer["candidates"]]
    return found


def bad_release(registry: Registry, before: Release) -> Release:
    """The policy that serves, beside a random reward model."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_reward(Path(folder) / "reward", int(time.time()))
        weights = load_file(source / WEIGHTS)
        weights["score.weight"] *= LOUD  # no score of it looks like one of a trained model
        save_file(weights, source / WEIGHTS, metadata={"format": "pt"})
        metadata = PublishMetadata(step=int(time.time()), licence="Apache-2.0")
        reward = registry.publish(source, name=NAME, kind=ModelKind.REWARD, metadata=metadata, by=BY)
    return registry.create_release(before.policy.ref, reward)


@contextlib.asynccontextmanager
async def watching(registry: Path, prometheus: str) -> AsyncIterator[asyncio.StreamReader]:
    """The command, as a person starts it; yields its lines."""
    arguments = ["registry", "watch", "run", CHANNEL, "--prometheus", prometheus, "--interval", str(INTERVAL_SECONDS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "acemath_cli", *arguments, "--root", str(registry), "--json",
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        process.terminate()
        await process.wait()


async def rolled_back(lines: asyncio.StreamReader) -> list[dict[str, Any]]:
    """Every look until the one that rolls back."""
    looks = list[dict[str, Any]]()
    async with asyncio.timeout(PATIENCE):
        while not looks or looks[-1]["verdict"] != "rolled_back":
            line = await lines.readline()
            if not line:
                raise SystemExit(f"the watch ended; its last look: {looks[-1:]}")
            looks.append(json.loads(line))
            print(f"{looks[-1]['verdict']}: {looks[-1]['why']}", flush=True)
    return looks


async def answered(seen: Seen, release: str, since: float) -> float:
    """When the first answer of a release was there to a request that was sent since."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [at for asked, at, by in seen.answers if by == release and asked >= since]
            if found:
                return min(found)
            await asyncio.sleep(0.1)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole of it."""
    registry, seen, over = Registry(options.registry), Seen(), asyncio.Event()
    channel = registry.channel(CHANNEL)
    before, bands = registry.release(channel.release), registry.bands(CHANNEL)
    headers = {"authorization": f"Bearer {options.key_file.read_text().strip()}"} if options.key_file else {}
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=180) as http:
        calm = await calm_scores(http)
        middle, width = statistics.fmean(calm), max(1.0, statistics.stdev(calm))
        band = Band(measure=Measure.SCORE_MEAN, low=round(middle - width, 2), high=round(middle + width, 2))
        watched = Bands(bands=(band,), window_seconds=WINDOW_SECONDS, min_count=20, looks=2)
        registry.set_bands(CHANNEL, watched, by=BY)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(client(http, registry, seen, N, over))
                try:
                    found = await taken_back(registry, options, seen, before)
                finally:
                    over.set()
        finally:
            registry.set_bands(CHANNEL, bands, by=BY)
            now = registry.channel(CHANNEL)
            if now.release != before.id:
                registry.promote(CHANNEL, before.id, expected_generation=now.generation, by=BY)
    calm_figures = {"mean": round(middle, 3), "deviation": round(statistics.stdev(calm), 3), "scores": len(calm)}
    return found | {"band": str(band), "calm": calm_figures, "clients": CLIENTS, "n": N}


async def taken_back(registry: Registry, options: argparse.Namespace, seen: Seen, before: Release) -> dict[str, Any]:
    """Promote the bad one, and wait until the one before answers again."""
    async with watching(options.registry, options.prometheus) as lines:
        bad = await asyncio.to_thread(bad_release, registry, before)
        generation = registry.channel(CHANNEL).generation
        promoted = time.monotonic()
        registry.promote(CHANNEL, bad.id, expected_generation=generation, by=BY)
        first = await answered(seen, bad.id, promoted)
        looks = await rolled_back(lines)
        back = time.monotonic()
        again = await answered(seen, before.id, back)
    return {
        "answers": len(seen.answers),
        "answers_by_the_bad_one": sum(by == bad.id for _, _, by in seen.answers),
        "failures": seen.failures,
        "seconds": {
            "promotion_to_first_answer": round(first - promoted, 1),
            "first_answer_to_rollback": round(back - first, 1),
            "rollback_to_first_answer_by_the_one_before": round(again - back, 1),
        },
        "window_seconds": WINDOW_SECONDS,
        "looks": [look["verdict"] for look in looks],
        "why": looks[-1]["why"],
    }


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options)) | {"machine": machine.described()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
