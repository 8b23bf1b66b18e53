"""kill -9 of any part of the tree leaves nothing; on the double always, on real vLLM in test_stack.py."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from policy.conftest import FAKE_VLLM

from acemath_core.processes import shim

PARTS = ("agent", "outer", "inner", "api", "engine", "worker")
# A signal between the print and a `signal.pause()` would be handled first and the pause would never end; sleeps do end.
WAIT = "\nwhile True: time.sleep(0.05)"
AGENT = """
import subprocess, sys, time
shim = subprocess.Popen([sys.executable, "-I", "-S", *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(1000)
"""


def alive(pid: int) -> bool:
    found = shim.parent_of(str(pid))
    return found is not None and found[1][1] != "Z"


def below(pid: int) -> list[int]:
    return [p for p in shim.descendants(pid) if (found := shim.parent_of(str(p))) and found[1][0] == pid]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def chain_of(root: int) -> list[int]:
    """root and, downwards, one child each, Python's resource trackers left aside: the one with the most below it."""
    chain = [root]
    while children := [child for child in below(chain[-1]) if not is_resource_tracker(child)]:
        chain.append(max(children, key=lambda child: len(shim.descendants(child))))
    return chain


def is_resource_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return False


@pytest.fixture(params=[False, True], ids=["one group", "engine in its own session"])
def tree(request: pytest.FixtureRequest, free_port: Callable[[], int], tmp_path: Path) -> Iterator[dict[str, int]]:
    """Part → pid of a whole tree, the agent included."""
    port = free_port()
    fake = [sys.executable, str(FAKE_VLLM), "--model", str(tmp_path), "--served-model-name", "m", "--port", str(port)]
    extra = {"FAKE_VLLM_ENGINE_SETSID": "1"} if request.param else {}
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, shim.__file__, "--term-seconds", "5", "--", *fake], env={**os.environ, **extra}
    )
    assert wait_until(lambda: len(chain_of(agent.pid)) == len(PARTS), 60)
    chain = chain_of(agent.pid)
    yield dict(zip(PARTS, chain, strict=True))
    agent.kill()
    agent.wait()
    assert wait_until(lambda: not any(map(alive, chain)), 60), "the test itself leaves something"


@pytest.mark.parametrize("victims", [*((p,) for p in PARTS), *itertools.combinations(PARTS[:4], 2)], ids="+".join)
def test_nothing_is_left(tree: dict[str, int], victims: tuple[str, ...]) -> None:
    if victims == ("outer", "inner"):
        pytest.skip("both keepers at once is the agent's to clean: test_process.py")
    for part in victims:
        os.kill(tree[part], signal.SIGKILL)
    others = {part: pid for part, pid in tree.items() if part != "agent"}
    gone = wait_until(lambda: not any(map(alive, others.values())), 60)
    assert gone, f"left after 5 s: {[part for part, pid in others.items() if alive(pid)]}"


def test_term_goes_to_the_command_alone_and_its_status_comes_back() -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True)" + WAIT
    process = subprocess.Popen(
        [sys.executable, shim.__file__, "--term-seconds", "5", "--", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 7


def test_a_command_that_is_stopping_is_not_sent_a_second_term() -> None:
    code = """if True:
        import os, signal, sys, time
        got = []
        signal.signal(15, lambda *_: got.append(1) or os.write(1, b"asked\\n"))  # print is not for handlers
        print("up", flush=True)
        while not got:
            time.sleep(0.05)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            time.sleep(0.05)
        sys.exit(6 + len(got))
    """
    process = subprocess.Popen(
        [sys.executable, shim.__file__, "--term-seconds", "5", "--", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    assert process.stdout.readline() == b"asked\n"
    process.communicate(timeout=60)  # which closes the pipe: the process above is gone
    assert process.returncode == 7


def test_a_command_that_ignores_term_is_killed_in_time() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)" + WAIT
    process = subprocess.Popen(
        [sys.executable, shim.__file__, "--term-seconds", "0.3", "--", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert time.monotonic() - begun >= 0.3


def test_a_command_that_is_not_there_is_an_error_not_a_hang() -> None:
    command = [sys.executable, shim.__file__, "--term-seconds", "1", "--", "/nonexistent/vllm"]
    done = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert b"/nonexistent/vllm" in done.stderr
