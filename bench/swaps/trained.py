"""A training job that ends in the running services: does a client see the version change, and nothing else?

    python -m bench.swaps.trained http://127.0.0.1:8080 CONFIG.yaml --base DIR --registry .local/registry [--out FILE]

Beside a running stack (`make run`, and `make setup-train` for the job). Clients ask one problem after the other while
`acemath train sft CONFIG --publish bench-trained --promote default` trains under DeepSpeed and ends by promoting. Every
answer must be whole, be of the release before or of the job's, and name that release's own two versions; who asks after
somebody was answered by the new release is answered by it. At the end the channel points where it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from acemath_registry import Registry
from bench.reward import machine
from bench.swaps.report import quantiles

CHANNEL, NAME = "default", "bench-trained"
PATIENCE = 300.0
PROBLEMS = ("Tom has 3 boxes with 4 pens in each and buys 5 more. How many pens has he?", "What is 6 * 7?")


@dataclass(slots=True)
class Seen:
    """What the clients saw.

    Attributes:
        answers: (asked, answered, release), monotonic.
        failures: what went wrong.
    """

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def first(self, release: str) -> float | None:
        """When the first answer of a release was there."""
        return min((answered for _, answered, by in self.answers if by == release), default=None)

    def stepped_back(self, release: str) -> int:
        """Answers of others to who asked when one of `release` was there already."""
        first = self.first(release)
        return 0 if first is None else sum(1 for asked, _, by in self.answers if asked > first and by != release)


async def client(http: httpx.AsyncClient, registry: Registry, seen: Seen, n: int, over: asyncio.Event) -> None:
    """Ask one problem after the other, `n` candidates each, until it is `over`; a wrong answer is a failure."""
    number = 0
    while not over.is_set():
        number, asked = number + 1, time.monotonic()
        body = {"problem": PROBLEMS[number % 2], "n": n, "max_tokens": 96, "deadline_seconds": 120}
        try:
            reply = await http.post("/v1/solve", json=body)
        except httpx.HTTPError as error:
            seen.failures.append(f"no answer: {type(error).__name__}")
            continue
        wrong = f"status {reply.status_code}: {reply.text[:200]}" if reply.status_code != 200 else None
        wrong = wrong or _wrong(reply.json(), registry, n)
        if wrong:
            seen.failures.append(wrong)
        else:
            seen.answers.append((asked, time.monotonic(), reply.json()["release"]))


def _wrong(answer: dict[str, Any], registry: Registry, n: int) -> str | None:
    release = registry.release(answer["release"])
    pair = {"policy": str(release.policy.ref), "reward": str(release.reward.ref)}
    if answer["models"] != pair:
        return f"{answer['release']} is {pair}, the answer is of {answer['models']}"
    if answer["n_scored"] != n or answer["degraded_reason"] not in (None, "truncated"):
        return f"{answer['n_scored']} of {n} scored, {answer['degraded_reason']}"
    return None


async def _job(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The job as a user starts it; what it says at its end, and its seconds."""
    command = [sys.executable, "-m", "acemath_cli", "train", "sft", str(options.config), "--base", str(options.base)]
    command += ["--output", str(output), "--ranks", str(options.ranks), "--publish", NAME, "--promote", CHANNEL]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, "--root", str(options.registry), "--json", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    lines = [line for line in said.decode().splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise SystemExit(f"the job ended with status {process.returncode}")
    return json.loads(lines[-1]) | {"began": began, "ended": time.monotonic()}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The job beside its clients, and what they saw."""
    registry, seen, over = Registry(options.registry), Seen(), asyncio.Event()
    before = registry.channel(CHANNEL)
    headers = {"authorization": f"Bearer {options.key_file.read_text().strip()}"} if options.key_file else {}
    try:
        async with (
            httpx.AsyncClient(base_url=options.url, headers=headers, timeout=180) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(options.clients):
                group.create_task(client(http, registry, seen, options.n, over))
            with tempfile.TemporaryDirectory(prefix="bench-trained-") as folder, contextlib.ExitStack() as stack:
                stack.callback(over.set)
                await asyncio.sleep(options.calm)
                job = await _job(options, Path(folder) / "out")
                await _until_served(seen, job["release"])
                await asyncio.sleep(options.calm)
    finally:
        generation = registry.channel(CHANNEL).generation
        registry.promote(CHANNEL, before.release, expected_generation=generation, by="bench.swaps.trained")
    return _report(seen, before.release, job, options)


async def _until_served(seen: Seen, release: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while seen.first(release) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"no answer by {release} within {PATIENCE:.0f} s of the job's end")
        await asyncio.sleep(0.1)


def _report(seen: Seen, before: str, job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    first = seen.first(job["release"]) or 0.0
    by = {name: sum(1 for *_, release in seen.answers if release == name) for name in (before, job["release"])}
    others = sorted({release for *_, release in seen.answers} - by.keys())
    seconds = {
        "before the job": [b - a for a, b, _ in seen.answers if b < job["began"]],
        "while it trains": [b - a for a, b, _ in seen.answers if job["began"] <= a and b < job["ended"]],
        "from its end to the first new answer": [b - a for a, b, _ in seen.answers if job["ended"] <= a < first],
    }
    return {
        "model": job["model"],
        "answers_by_release": by,
        "answers_by_others": others,
        "stepped_back": seen.stepped_back(job["release"]),
        "failures": seen.failures,
        "job_seconds": round(job["ended"] - job["began"], 1),
        "job_end_to_first_answer": round(first - job["ended"], 1),
        "seconds_of_an_answer": {name: quantiles(values) for name, values in seconds.items()},
        "clients": options.clients,
        "n": options.n,
        "machine": machine.described(),
    }


def main() -> None:
    """Read the arguments, measure, print, write; status 1 when a client saw anything but the version change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("config", type=Path, help="of an SFT job")
    parser.add_argument("--base", type=Path, required=True, help="the checkpoint that it starts from")
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--calm", type=float, default=20.0, help="seconds before the job, and after the change")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["failures"] or result["answers_by_others"] or result["stepped_back"] else 0)


if __name__ == "__main__":
    main()
