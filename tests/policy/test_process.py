from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from policy.conftest import FAKE_VLLM
from policy.test_shim import alive, chain_of

from acemath_core.processes import shim
from acemath_core.processes.tree import ProcessTree

Eventually = Callable[..., Awaitable[None]]


def tree_of(tmp_path: Path, port: int, **extra: str) -> ProcessTree:
    command = [
        sys.executable,
        str(FAKE_VLLM),
        "--model",
        str(tmp_path),
        "--served-model-name",
        "m",
        "--port",
        str(port),
    ]
    return ProcessTree(command, {**os.environ, **extra}, label="m", term_seconds=3)


async def started(tree: ProcessTree, eventually: Eventually) -> list[int]:
    await tree.start()
    assert tree.pid is not None
    pid = tree.pid
    await eventually(lambda: len(chain_of(pid)) == 5)
    tree.remember(now=True)
    return chain_of(pid)


@pytest.mark.parametrize("own_session", ["", "1"])
async def test_both_keepers_killed_at_once_leave_nothing(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually, own_session: str
) -> None:
    tree = tree_of(tmp_path, free_port(), FAKE_VLLM_ENGINE_SETSID=own_session)
    chain = await started(tree, eventually)
    for keeper in chain[:2]:
        os.kill(keeper, signal.SIGKILL)
    assert await asyncio.wait_for(tree.wait(), 60) == 137
    await eventually(lambda: not any(map(alive, chain)), 60)


async def test_stop_is_gentle_and_kill_is_not(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    gentle, hard = tree_of(tmp_path, free_port()), tree_of(tmp_path, free_port())
    chains = [await started(tree, eventually) for tree in (gentle, hard)]
    await gentle.stop()
    await hard.kill()
    assert gentle.status == 0
    assert hard.status is not None
    assert not any(alive(pid) for chain in chains for pid in chain)


async def test_output_is_read_to_the_end_and_cut_into_lines() -> None:
    code = "print('x' * 300000); print('a\\rb'); raise SystemExit(3)"
    tree = ProcessTree([sys.executable, "-c", code], dict(os.environ), label="m", term_seconds=1)
    await tree.start()
    assert await asyncio.wait_for(tree.wait(), 60) == 3
    assert [len(line) for line in tree.tail] == [4096, 1]
    assert tree.tail[-1] == "b"
    await tree.stop()  # after the end it does nothing


async def test_a_command_that_is_not_there() -> None:
    tree = ProcessTree(["/nonexistent/vllm"], dict(os.environ), label="m", term_seconds=1)
    await tree.start()
    assert await asyncio.wait_for(tree.wait(), 60) != 0
    assert any("/nonexistent/vllm" in line for line in tree.tail)


def test_descendants_are_found_through_reparenting() -> None:
    assert os.getpid() in shim.descendants(os.getppid())
