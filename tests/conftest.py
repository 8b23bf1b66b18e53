"""What every test may use, and what a test may not do."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from loopback_ports import free_run
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent

# A busy machine makes single examples slow, and the making of them; what must be fast is measured in processor time by
# its own tests. Here, and not where the examples are: a file that is run alone has the profile that it has with all.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# Nothing in a test may ask a hub; a test of vLLM or transformers works on files that it made or that were published.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# A gateway that is told nothing else makes its first admin key below this folder: never below the home of who tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="acemath-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


def _has_docker_engine() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "version"], capture_output=True, timeout=20, check=False).returncode == 0


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores: most tests wait for a process, a socket or a deadline."""
    return len(os.sched_getaffinity(0)) + 1


@cache
def _group(path: str) -> str:
    """What stays together on one worker: a file, so that its fixtures are made once; and every file with a real stack,
    so that no two of them share the cores."""
    real = path.startswith(("tests/stack/", "tests/contract/")) or "mark.stack" in (TESTS.parent / path).read_text()
    return "stack" if real else path


class _ByGroup(LoadScopeScheduling):
    """xdist's own groups (`--dist loadgroup`) are lost on pytest 9: it no longer reads the names that xdist changes."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByGroup:
    """Files go to the workers in the order in which they were collected."""
    return _ByGroup(config, log)


def _longest_first(item: pytest.Item) -> int:
    """A worker that got the stack last would keep all others waiting."""
    slow = item.get_closest_marker("slow")
    return 0 if _group(item.nodeid.partition("::")[0]) == "stack" else 1 if slow else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Share the tests out among workers, and skip, with the reason, what this machine cannot run."""
    if hasattr(config, "workerinput"):
        items.sort(key=_longest_first)
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
