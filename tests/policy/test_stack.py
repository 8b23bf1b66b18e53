"""Real vLLM under the agent: it serves its version, and kill -9 of any part leaves nothing after 5 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback_ports import free_run
from policy.test_shim import alive, chain_of, wait_until
from registry.tiny import write_checkpoint

from acemath_core.processes import shim
from acemath_registry import PublishMetadata, Registry

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(1800)]
START_SECONDS = 600  # of vLLM on a busy machine; about 20 s on an idle one
PARTS = ("agent", "outer", "inner", "api", "engine")  # the one worker runs inside the engine


class Agent:
    """`python -m acemath_policy` as a process."""

    def __init__(self, folder: Path, port: int) -> None:
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
        }
        self.environment = {**os.environ, **{f"ACEMATH_POLICY__{k}": str(v) for k, v in names.items()}}
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "agent.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "acemath_policy"]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def slot(self) -> dict[str, Any]:
        try:
            slots = httpx.get(f"{self.url}/v1/slots", timeout=5).json()
        except httpx.TransportError:
            return {}
        return dict(slots[-1]) if slots else {}

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
    exported = folder / "export"
    subprocess.run([sys.executable, Path(__file__).with_name("make_tiny_llama.py"), exported], check=True, timeout=300)
    registry = Registry(folder / "registry")
    metadata = PublishMetadata(step=1, licence="Apache-2.0")
    policy = registry.publish(exported, name="tiny", kind="policy", metadata=metadata)
    reward = registry.publish(write_checkpoint(folder / "rew", "reward"), name="rew", kind="reward", metadata=metadata)
    release = registry.create_release(policy, reward)
    registry.promote("default", release.id, expected_generation=None, by="test")
    running = Agent(folder, free_run(10))
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
