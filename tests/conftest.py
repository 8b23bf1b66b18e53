"""What every test may use, and what a test may not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import pytest
from loopback_ports import free_run

# Nothing in a test may ask a hub; a test of vLLM or transformers works on files that it made or that were published.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# A gateway that is told nothing else makes its first admin key below this folder: never below the home of who tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="acemath-state-")


def _has_docker_engine() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "version"], capture_output=True, timeout=20, check=False).returncode == 0


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    for marker, possible, reason in (
        ("docker", _has_docker_engine, "no Docker engine answers here"),
        ("gpu", _has_gpu, "no CUDA device here"),
    ):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not possible():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns a loopback port nobody listens on now; a different one at each call."""
    return free_run
