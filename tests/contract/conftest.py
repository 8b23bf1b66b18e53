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
from loopback_ports import free_run

START_SECONDS = 400


@dataclass(frozen=True)
class RealRelease:
    """A tiny release that was published."""

    folder: Path
    release: str
    policy: str
    reward: str

    def settings(self) -> dict[str, str]:
        """Where a service finds it."""
        return {"REGISTRY_ROOT": str(self.folder / "registry"), "CACHE_DIR": str(self.folder / "cache")}


@dataclass(frozen=True)
class RealReward:
    """Where the real reward service is and what it serves."""

    reward: str
    reward_url: str


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
def real_release(tmp_path_factory: pytest.TempPathFactory) -> RealRelease:
    """Made once for all contract tests."""
    folder = tmp_path_factory.mktemp("real")
    made = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("make_release.py")), str(folder / "registry")],
        check=True,
        stdout=subprocess.PIPE,
        timeout=400,
    )
    return RealRelease(folder, **json.loads(made.stdout.splitlines()[-1]))  # libraries may have logged before it


@pytest.fixture(scope="session")
def real_reward(real_release: RealRelease) -> Iterator[RealReward]:
    """Started once for all contract tests; seconds."""
    port = free_run()
    settings = real_release.settings() | {"PORT": str(port)}
    with _process("acemath_reward", "ACEMATH_REWARD__", settings, real_release.folder / "reward.log") as alive:
        url = f"http://127.0.0.1:{port}"
        _active(url, real_release.reward, alive)
        yield RealReward(real_release.reward, url)


@pytest.fixture(scope="session")
def real_stack(real_release: RealRelease, real_reward: RealReward) -> Iterator[RealStack]:
    """Started once for all contract tests; about a minute."""
    port, folder = free_run(3), real_release.folder
    policy_url = f"http://127.0.0.1:{port}"
    policy = real_release.settings() | {
        "PORT": str(port),
        "FIRST_VLLM_PORT": str(port + 1),
        "LAST_VLLM_PORT": str(port + 2),
        "ENFORCE_EAGER": "true",
        "CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "2",
        "SHUTDOWN_TIMEOUT_SECONDS": "2",
    }
    with _process("acemath_policy", "ACEMATH_POLICY__", policy, folder / "policy.log") as alive:
        yield RealStack(
            folder / "registry",
            real_release.release,
            real_release.policy,
            real_release.reward,
            policy_url=policy_url,
            reward_url=real_reward.reward_url,
            vllm_url=_active(policy_url, real_release.policy, alive),
        )


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
