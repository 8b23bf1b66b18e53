"""The real reward service on free ports, the checkpoint in a temporary registry; texts, as its API takes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from acemath_registry import PublishMetadata, Registry
from bench.reward.groups import Group, Scores
from bench.reward.worker import Options

START_SECONDS = 600
CALLS = 8
"""Calls under way at once, by one client."""


def publish(registry: Registry, checkpoint: Path, scratch: Path) -> None:
    """Put the checkpoint on the channel, beside a tiny policy with its tokenizer that nobody loads."""
    metadata = PublishMetadata(step=0, licence="Apache-2.0")
    reward = registry.publish(checkpoint, name="bench-reward", kind="reward", metadata=metadata)
    policy_folder = _tiny_policy(checkpoint, scratch / "policy")
    policy = registry.publish(policy_folder, name="bench-policy", kind="policy", metadata=metadata)
    release = registry.create_release(policy, reward)
    registry.promote("default", release.id, expected_generation=None, by="bench")


def _tiny_policy(checkpoint: Path, folder: Path) -> Path:
    """One layer of 64 numbers; vocabulary and template as the checkpoint's."""
    known = json.loads((checkpoint / "config.json").read_text())
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    ids = {name: known.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tiny = LlamaConfig(vocab_size=known["vocab_size"], **wide, **ids)
    LlamaForCausalLM(tiny).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, folder / name)
    return folder


class Service:
    """One or more services and the client that asks them in turn.

    Args:
        checkpoint: its directory.
        services: how many processes.
        threads: of each.
        device: torch device.
    """

    def __init__(self, checkpoint: Path, services: int, threads: int, device: str) -> None:
        self._stack = contextlib.ExitStack()
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        publish(Registry(scratch / "registry"), checkpoint, scratch)
        settings = {"THREADS": str(threads), "DEVICE": device, "REGISTRY_ROOT": str(scratch / "registry")}
        self._urls = [self._stack.enter_context(_service(settings, scratch, i)) for i in range(services)]
        for url in self._urls:
            _wait_until_ready(url)
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(timeout=3600, trust_env=False)
        self.facts: dict[str, Any] = {"services": services, "threads": threads, "device": device, "calls": CALLS}
        self.facts["checks"] = httpx.get(f"{self._urls[0]}/readyz?verbose=true", trust_env=False).json()

    def prepare(self, options: Options) -> None:
        """A call that costs nothing, so that connections are open."""
        self._loop.run_until_complete(self._touch())

    async def _touch(self) -> None:
        await asyncio.gather(*(self._client.get(f"{url}/livez") for url in self._urls * CALLS))

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """Every group a call."""
        return self._loop.run_until_complete(self._score(groups))

    async def _score(self, groups: Sequence[Group]) -> Scores:
        room = asyncio.Semaphore(CALLS * len(self._urls))

        async def one(index: int, group: Group) -> list[float]:
            async with room:
                return await self._call(self._urls[index % len(self._urls)], group)

        return await asyncio.gather(*(one(index, group) for index, group in enumerate(groups)))

    async def _call(self, url: str, group: Group) -> list[float]:
        body = {"problem": group.problem, "candidates": group.texts}
        response = await self._client.post(f"{url}/v1/score", json=body)
        if not response.is_success:
            raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
        data = response.json()["data"]
        if [one["tokens"] for one in data] != [len(group.prompt) + len(own) for own in group.candidates]:
            raise RuntimeError(f"the service tokenises {group.problem[:60]!r} otherwise than the set")
        return [one["score"] for one in data]

    def close(self) -> None:
        """End the services, remove the registry."""
        self._stack.close()


@contextlib.contextmanager
def _service(settings: dict[str, str], scratch: Path, index: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"PORT": port, "INSTANCE": f"bench-{index}", "CACHE_DIR": scratch / f"cache-{index}"}
    own |= {"MAX_QUEUE_ITEMS": 100_000, "MAX_QUEUE_TOKENS": 10_000_000, "DEFAULT_DEADLINE_SECONDS": 3600}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACEMATH_")}
    environment |= {f"ACEMATH_REWARD__{name}": str(value) for name, value in (settings | own).items()}
    process = subprocess.Popen([sys.executable, "-m", "acemath_reward"], env=environment, stdout=2)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=15)


def _wait_until_ready(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the service is not ready after {START_SECONDS} s")


def create(options: Options) -> Service:
    """See `bench.reward.worker`."""
    return Service(Path(options["checkpoint"]), options["services"], options["threads"], options["device"])
