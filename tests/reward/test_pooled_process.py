"""The whole process with servers below it, killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
from loopback_ports import free_run
from policy.test_shim import alive
from reward.pooled_world import FAKE_VLLM, SHAPE
from reward.publishing import promote, publish_reward
from reward.serving import wait_for, wait_until_ready
from reward.tiny import write_checkpoint

from acemath_core.processes import shim
from acemath_registry import Registry


def test_killed_with_9_it_leaves_no_process(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish_reward(registry, write_checkpoint(tmp_path / "export", "llama", **SHAPE))
    promote(registry, version, tmp_path)
    port = free_run(3)
    chosen = {
        "ENGINE": "vllm",
        "VLLM_COMMAND": f'["{sys.executable}", "{FAKE_VLLM}"]',
        "PORT": str(port),
        "FIRST_VLLM_PORT": str(port + 1),
        "LAST_VLLM_PORT": str(port + 2),
        "REGISTRY_ROOT": str(registry.root),
        "CACHE_DIR": str(tmp_path / "cache"),
        "POLL_SECONDS": "0.1",
    }
    settings = {f"ACEMATH_REWARD__{name}": value for name, value in chosen.items()}
    process = subprocess.Popen([sys.executable, "-m", "acemath_reward"], env=os.environ | settings)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, 120)
        body = {"problem": "1 + 1?", "candidates": ["2", "3"]}
        assert httpx.post(f"{url}/v1/score", json=body, timeout=60).json()["model"] == str(version)
        wait_for(lambda: len(shim.descendants(process.pid)) == 5)  # two keepers, API server, engine, worker
        below = shim.descendants(process.pid)
    finally:
        process.kill()
        process.wait(10)
    wait_for(lambda: not any(map(alive, below)), 15)
