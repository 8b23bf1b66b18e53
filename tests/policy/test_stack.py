"""Real vLLM under the agent: it serves its version, swaps to an adapter, and kill -9 of any part leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback_ports import free_run
from policy.test_shim import alive, chain_of, wait_until
from registry.tiny import write_checkpoint

from acemath_core.processes import shim
from acemath_registry import ModelRef, PublishMetadata, Registry

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(1800)]
START_SECONDS = 600  # of vLLM on a busy machine; about 20 s on an idle one
PARTS = ("agent", "outer", "inner", "api", "engine")  # the one worker runs inside the engine
BLOCK = 128  # tokens: vLLM on a CPU keeps keys and values of whole blocks


@dataclass(frozen=True)
class Models:
    """A tiny policy that is promoted, and an adapter on it; see `make_tiny_adapter`.

    Attributes:
        exports: what `make_tiny_adapter` made.
        base: the policy.
        reward: a reward model that nobody loads.
        expected: `expected.json`.
    """

    registry: Registry
    exports: Path
    base: ModelRef
    reward: ModelRef
    expected: dict[str, Any]

    @classmethod
    def make(cls, folder: Path) -> Models:
        exports, registry = folder / "exports", Registry(folder / "registry")
        subprocess.run([sys.executable, Path(__file__).with_name("make_tiny_adapter.py"), exports], check=True)
        metadata, reward = PublishMetadata(step=1, licence="Apache-2.0"), write_checkpoint(folder / "rew", "reward")
        made = cls(
            registry,
            exports,
            registry.publish(exports / "base", name="tiny", kind="policy", metadata=metadata),
            registry.publish(reward, name="rew", kind="reward", metadata=metadata),
            json.loads((exports / "expected.json").read_text()),
        )
        made.promote(made.base)
        return made

    def publish_adapter(self, name: str, step: int) -> ModelRef:
        """`adapter` or `flipped`, both with the canary of the former."""
        metadata = PublishMetadata(step=step, licence="Apache-2.0", canary=self.expected["canary"])
        source = self.exports / name
        return self.registry.publish(source, name="tiny", kind="policy", metadata=metadata, adapter_of=self.base)

    def promote(self, policy: ModelRef) -> None:
        release = self.registry.create_release(policy, self.reward)
        self.registry.promote("default", release.id, expected_generation=None, by="test")

    def let_go(self) -> None:
        """A gateway's record: it is where the channel is, and holds nothing else. Without one, nothing is let go."""
        channel, now = self.registry.channel("default"), time.time()
        where = {"generation": channel.generation, "release": channel.release}
        self.registry.write_status("gateway", "gw", {**where, "leases": {}, "at": now, "viewed": now})


class Agent:
    """`python -m acemath_policy` as a process."""

    def __init__(self, folder: Path, port: int, models: Models) -> None:
        self.models = models
        names = {
            "REGISTRY_ROOT": folder / "registry",
            "CACHE_DIR": folder / "cache",
            "PORT": port,
            "FIRST_VLLM_PORT": port + 1,
            "LAST_VLLM_PORT": port + 9,
            "ENFORCE_EAGER": "true",
            "CPU_KVCACHE_SPACE": 1,
            "OMP_NUM_THREADS": 2,
            "SHUTDOWN_TIMEOUT_SECONDS": 5,
            "RESTART_BACKOFF_MAX_SECONDS": 1,
            "EXTRA_ARGS": '["--enable-prompt-tokens-details"]',
            "DTYPE": "float32",  # its continuations are compared with transformers' on whatever processor
        }
        self.environment = {**os.environ, **{f"ACEMATH_POLICY__{k}": str(v) for k, v in names.items()}}
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "agent.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "acemath_policy"]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def slots(self) -> list[dict[str, Any]]:
        try:
            return list(httpx.get(f"{self.url}/v1/slots", timeout=5).json())
        except httpx.TransportError:
            return []

    def slot(self, ref: ModelRef | None = None) -> dict[str, Any]:
        """The last one, or the last of a version."""
        return next((slot for slot in reversed(self.slots()) if slot["version"] == str(ref or slot["version"])), {})

    def wait_state(self, ref: ModelRef, state: str, meanwhile: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """The slot of a version, once it has this state; `meanwhile` is called again and again."""
        arrived = wait_until(lambda: (meanwhile(), self.slot(ref).get("state") == state)[1], START_SECONDS)
        assert arrived, (self.slots(), self.log.read_text()[-3000:])
        return self.slot(ref)

    def greedy(self, ref: ModelRef) -> tuple[list[int], int]:
        """What a version's server continues the fixed prompt with, and how much of the prompt it had in its cache."""
        prompt, tokens = self.models.expected["prompt"], len(self.models.expected["base"])
        body = {"model": str(ref), "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        answer = httpx.post(
            f"{self.slot(ref)['endpoint']}/v1/completions", json=body | {"ignore_eos": True}, timeout=60
        )
        assert (answer.json()["model"], answer.json()["system_fingerprint"]) == (str(ref), str(ref))
        cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer.json()["choices"][0]["token_ids"], cached

    def wait_active(self) -> dict[str, int]:
        """Part → pid, once the version is active."""
        arrived = wait_until(
            lambda: self.slot().get("state") == "active" and bool(self.slot()["endpoint"]), START_SECONDS
        )
        assert arrived, self.log.read_text()[-3000:]
        chain = chain_of(self.process.pid)  # a leaf beside the engine is Python's resource tracker; it must go, too
        assert len(chain) == len(PARTS), chain
        return dict(zip(PARTS, chain, strict=True))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("agent")
    running = Agent(folder, free_run(10), Models.make(folder))
    yield running
    running.process.terminate()
    running.process.wait(timeout=60)


def test_it_serves_its_version_and_is_ready(agent: Agent) -> None:
    agent.wait_active()
    slot = agent.slot()
    body = {"model": slot["version"], "prompt": [1, 70, 71], "max_tokens": 3, "temperature": 0}
    answer = httpx.post(f"{slot['endpoint']}/v1/completions", json=body, timeout=60).json()
    assert (answer["model"], answer["system_fingerprint"]) == (slot["version"], slot["version"])
    assert httpx.get(f"{agent.url}/readyz", timeout=5).status_code == 200
    for path in ("/docs", "/openapi.json", "/collective_rpc", "/pause"):
        assert httpx.post(f"{slot['endpoint']}{path}", json={}, timeout=5).status_code in (404, 405)
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in chain_of(agent.process.pid)]
    assert not [command for command in commands if "VLLM_API_KEY" in command]


def test_an_adapter_goes_in_with_an_empty_cache_and_comes_back_out(agent: Agent) -> None:
    models, expected = agent.models, agent.models.expected
    base = agent.wait_state(models.base, "active")
    assert expected["base"] != expected["merged"]
    assert agent.greedy(models.base)[0] == expected["base"]
    assert agent.greedy(models.base) == (expected["base"], BLOCK)
    adapter = models.publish_adapter("adapter", 2)
    models.promote(adapter)
    agent.wait_state(adapter, "active")
    assert agent.greedy(adapter) == (expected["merged"], 0)  # the old server had this prompt in its cache
    assert agent.greedy(adapter) == (expected["merged"], BLOCK)
    models.registry.rollback("default", by="test")
    assert agent.wait_state(models.base, "active")["endpoint"] == base["endpoint"]
    assert agent.greedy(models.base) == (expected["base"], BLOCK)
    agent.wait_state(adapter, "retired", models.let_go)


def test_a_damaged_adapter_is_told_by_the_canary_and_the_old_version_serves(agent: Agent) -> None:
    models = agent.models
    agent.wait_state(models.base, "active")
    flipped = models.publish_adapter("flipped", 3)
    models.promote(flipped)
    assert "log-probabilities differ" in agent.wait_state(flipped, "rejected")["reason"]
    assert agent.slot(models.base)["state"] == "active"
    assert agent.greedy(models.base)[0] == models.expected["base"]
    models.promote(models.base)


@pytest.mark.parametrize("victim", ["engine", "api", "outer", "agent"])
def test_kill_9_leaves_nothing_and_it_comes_back(agent: Agent, victim: str) -> None:
    tree = agent.wait_active()
    servers = dict.fromkeys(shim.descendants(tree["agent"]), "another") | {pid: part for part, pid in tree.items()}
    del servers[tree["agent"]]
    begun = time.monotonic()
    os.kill(tree[victim], signal.SIGKILL)
    gone = wait_until(lambda: not any(map(alive, servers)), 60)
    print(f"kill -9 {victim}: {time.monotonic() - begun:.2f} s")
    assert gone, f"left after 5 s: {[part for pid, part in servers.items() if alive(pid)]}"
    if victim == "agent":
        agent.process.wait(timeout=60)
        agent.start()
    after = agent.wait_active()
    assert not set(after.values()) & set(servers)


def test_term_ends_everything_in_order(agent: Agent) -> None:
    tree = agent.wait_active()
    agent.process.terminate()
    assert agent.process.wait(timeout=60) in (0, -signal.SIGTERM)  # uvicorn passes the signal on to itself at the end
    assert not any(map(alive, tree.values()))
    assert not shim.descendants(agent.process.pid)
