"""How long a promotion and a rollback take, beside the least that they could.

    python -m bench.swaps.times http://127.0.0.1:8080 --registry .local/registry --pid PID [--out FILE]

Beside an idle running stack (`make run`; PID is its first process). The channel's pair is published once more under
other names, with its canaries, as a job that has just written two checkpoints does it; then, between the two releases:
promotions, rollbacks after the old versions are gone, and rollbacks at the first answer of the new release. The least:
the same vLLM server, started by hand with the same arguments on another port, until it is healthy; and the bytes of
both checkpoints at the speed at which this disk reads them without a cache. At the end the channel points where it did.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from acemath_registry import ModelKind, ModelRef, PublishMetadata, Registry
from bench.reward import machine
from bench.swaps.__main__ import slots

CHANNEL, PATIENCE, FREE_PORT = "default", 600.0, 18999
KINDS, ENDED = (ModelKind.POLICY, ModelKind.REWARD), ("rejected", "retired")
PROBLEM = "What is 6 * 7?"


class Stack:
    """A running stack as its caller and its registry see it."""

    def __init__(self, url: str, registry: Registry, key: str | None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.registry, self._http = registry, httpx.Client(base_url=url, headers=headers, timeout=120)

    def answers_by(self, release: str) -> None:
        """Wait for an answer by a release."""
        self._until(lambda: self._served() == release, f"an answer by {release}")

    def alone(self, release: str) -> None:
        """Wait until no other release's versions are kept."""
        members = self.registry.release(release)
        wanted = {str(members.policy.ref), str(members.reward.ref)}
        self._until(lambda: self._kept() == wanted, f"only {release} in the slots")

    def move(self, release: str) -> None:
        """Point the channel at a release."""
        generation = self.registry.channel(CHANNEL).generation
        self.registry.promote(CHANNEL, release, expected_generation=generation, by="bench.swaps.times")

    def publish(self, step: int) -> str:
        """Publish both versions that the channel names once more, with another step; the id of their release."""
        pair = self.registry.release(self.registry.channel(CHANNEL).release)
        policy, reward = (self._published(pair.member(kind).ref, kind, step) for kind in KINDS)
        return self.registry.create_release(policy, reward).id

    def _published(self, ref: ModelRef, kind: ModelKind, step: int) -> ModelRef:
        known = self.registry.manifest(ref)
        metadata = PublishMetadata(step=step, licence=known.licence, canary=known.canary)
        source, name = self.registry.path(ref), f"bench-times-{kind.value}"
        return self.registry.publish(source, name=name, kind=kind, metadata=metadata, by="bench.swaps.times")

    def _served(self) -> str | None:
        answer = self._http.post("/v1/solve", json={"problem": PROBLEM, "n": 1, "max_tokens": 4})
        return str(answer.json()["release"]) if answer.status_code == 200 else None

    def _kept(self) -> set[str]:
        return {version for version, slot in slots(self.registry).items() if slot["state"] not in ENDED}

    @staticmethod
    def _until(true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.05)


def measure(stack: Stack, rounds: int) -> dict[str, list[float]]:
    """Seconds of publishing both versions, and from a change of the channel to the first answer by its release."""
    first, found = stack.registry.channel(CHANNEL).release, dict[str, list[float]]()
    step = int(time.time())

    def changed(name: str, change: Callable[[], object], release: str) -> None:
        began = time.monotonic()
        change()
        stack.answers_by(release)
        found.setdefault(name, []).append(round(time.monotonic() - began, 2))
        print(f"{name}: {found[name][-1]} s", flush=True)

    def back() -> object:
        return stack.registry.rollback(CHANNEL, by="bench.swaps.times")

    for number in range(rounds):
        began = time.monotonic()
        other = stack.publish(step + number)
        found.setdefault("publish", []).append(round(time.monotonic() - began, 2))
        changed("promote what was just published", lambda other=other: stack.move(other), other)
        stack.alone(other)
        changed("rollback, the old one gone", back, first)
        stack.alone(first)
        changed("promote once more", lambda other=other: stack.move(other), other)
        changed("rollback, the old one still there", back, first)
        stack.alone(first)
    return found


def vllm_alone(pid: int) -> float:
    """Seconds in which a server with the arguments of the one that runs is healthy."""
    for process in psutil.Process(pid).children(recursive=True):
        command = process.cmdline()
        if command[1:2] == ["-m"] and command[2].startswith("vllm.") and "--served-model-name" in command:
            break  # not what looks after it, which ends with the agent
    else:
        raise SystemExit(f"no vLLM server under process {pid}")
    command[command.index("--port") + 1] = str(FREE_PORT)
    environment, began = process.environ(), time.monotonic()
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit(f"the server ended with status {server.returncode}")
            try:
                if httpx.get(f"http://127.0.0.1:{FREE_PORT}/health", timeout=1).status_code in (200, 401):
                    return round(time.monotonic() - began, 2)
            except httpx.HTTPError:
                time.sleep(0.05)
    finally:
        server.terminate()
        server.wait(60)


def read_seconds(files: list[Path]) -> tuple[int, float]:
    """Bytes of these files and the seconds that reading them takes when the page cache has none of them."""
    read, took = 0, 0.0
    for path in files:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.monotonic()
            while piece := file.read(2**22):
                read += len(piece)
            took += time.monotonic() - start
    return read, round(took, 3)


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the stack's first process")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    registry = Registry(options.registry)
    stack = Stack(options.url, registry, options.key_file.read_text().strip() if options.key_file else None)
    pair = registry.release(registry.channel(CHANNEL).release)
    weights = [path for ref in (pair.policy.ref, pair.reward.ref) for path in registry.path(ref).glob("*.safetensors")]
    starts = [vllm_alone(options.pid) for _ in range(options.rounds)]
    size, seconds = read_seconds(weights)
    result: dict[str, Any] = {
        "seconds_to_the_first_answer": measure(stack, options.rounds),
        "least": {"vllm_alone_seconds": starts, "checkpoint_bytes": size, "read_seconds": seconds},
        "machine": machine.described(),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    named = {"vLLM alone": starts, **result["seconds_to_the_first_answer"]}
    for name, values in named.items():
        print(f"{name}: {statistics.median(values):.1f} s (median of {len(values)}: {values})")
    print(f"reading both checkpoints: {seconds:.2f} s for {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
