"""The real policy agent with real vLLM, and the real reward service, on tiny random checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START_SECONDS = 400


@dataclass(frozen=True)
class RealStack:
    """Where the real services are and what they serve."""

    registry_root: Path
    release: str
    policy: str
    reward: str
    policy_url: str
    reward_url: str
    vllm_url: str


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """Started once for all contract tests; about a minute."""
    folder = tmp_path_factory.mktemp("real")
    made = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("make_release.py")), str(folder / "registry")],
        check=True,
        stdout=subprocess.PIPE,
        timeout=400,
    )
    names = json.loads(made.stdout.splitlines()[-1])  # libraries may have logged before it
    ports = [_free_port() for _ in range(4)]
    policy_url, reward_url = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}"
    common = {"REGISTRY_ROOT": str(folder / "registry"), "CACHE_DIR": str(folder / "cache")}
    policy = common | {
        "PORT": str(ports[0]),
        "FIRST_VLLM_PORT": str(min(ports[1:3])),
        "LAST_VLLM_PORT": str(max(ports[1:3])),
        "ENFORCE_EAGER": "true",
        "CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "2",
        "SHUTDOWN_TIMEOUT_SECONDS": "2",
    }
    with (
        _process("acemath_policy", "ACEMATH_POLICY__", policy, folder / "policy.log") as policy_alive,
        _process(
            "acemath_reward", "ACEMATH_REWARD__", common | {"PORT": str(ports[3])}, folder / "reward.log"
        ) as alive,
    ):
        vllm_url = _active(policy_url, names["policy"], policy_alive)
        _active(reward_url, names["reward"], alive)
        yield RealStack(folder / "registry", **names, policy_url=policy_url, reward_url=reward_url, vllm_url=vllm_url)


@contextlib.contextmanager
def _process(module: str, prefix: str, settings: dict[str, str], log: Path) -> Iterator[Callable[[], str | None]]:
    """Run a service; yields a function that says why it is dead, or None."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACEMATH_")}
    environment |= {prefix + name: value for name, value in settings.items()}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=out, stderr=out)

    def dead() -> str | None:
        return None if process.poll() is None else f"{module} ended: {log.read_text()[-3000:]}"

    try:
        yield dead
    finally:
        process.terminate()
        process.wait(timeout=60)


def _active(url: str, version: str, dead: Callable[[], str | None]) -> str:
    """The endpoint of a version once it is active."""
    until, seen = time.monotonic() + START_SECONDS, "nothing"
    while time.monotonic() < until:
        reason = dead()
        assert reason is None, reason
        with contextlib.suppress(httpx.TransportError):
            slots = httpx.get(f"{url}/v1/slots", timeout=5).json()
            seen = str(slots)
            for slot in slots:
                if slot["version"] == version and slot["state"] == "active":
                    return str(slot["endpoint"] or url)
        time.sleep(0.5)
    raise AssertionError(f"{url} did not serve {version} in {START_SECONDS} s; last seen: {seen}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
