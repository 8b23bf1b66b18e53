"""The real stack (`acemath_local.run`: supervisor, Redis, vLLM, reward, gateway) on free ports, once a session.

`ACEMATH_STACK_STATE` names the state folder of a stack that runs already, e.g. `.local` after `make run`: it is used as
it is, which spares the minutes of a start, and its processes are killed by the tests that do that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from loopback_ports import free_run

from acemath_local.environment import socket_path
from acemath_local.publish import tethered_python
from acemath_local.run import CONFIG, SAMPLE
from acemath_local.settings import LocalSettings
from acemath_local.supervision import ProcessState, Supervisor

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 900.0


@dataclass(frozen=True)
class RunningStack:
    """A stack that is ready.

    Attributes:
        url: base URL of the gateway.
        supervisor: asks the supervisor that runs it.
        logs: folder of `<service>.log`.
    """

    url: str
    supervisor: Supervisor
    logs: Path
    sample: str = SAMPLE

    def process(self, service: str) -> ProcessState:
        """What supervisor knows of a service."""
        return self.supervisor.states()[service]

    def kill(self, service: str) -> int:
        """`kill -9` the service's process, as the kernel's OOM killer would; gives the pid that died."""
        pid = self.process(service).pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def ready(self) -> bool:
        """Whether the gateway says so."""
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for `condition`; gives how long it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if condition():
                return time.monotonic() - started
            time.sleep(0.25)
        tails = "\n".join(f"--- {path.name}\n{_tail(path)}" for path in sorted(self.logs.glob("*.log")))
        raise AssertionError(f"{what}: not within {seconds} s\n{tails}")


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """The stack of this session; nothing of it outlives it."""
    state = os.environ.get("ACEMATH_STACK_STATE")
    if state:
        yield _attached(Path(state).absolute())
        return
    with tempfile.TemporaryDirectory(prefix="acemath-stack-") as directory:
        yield from _started(Path(directory))


@pytest.fixture
def http(stack: RunningStack) -> Iterator[httpx.Client]:
    """A client of the running gateway, which is ready."""
    stack.wait_until(stack.ready, 180, "the gateway is ready")
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=120) as client:
        yield client


def _started(directory: Path) -> Iterator[RunningStack]:
    _reuse_base_model(directory)
    base = free_run(20)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACEMATH_LOCAL__")} | {
        "ACEMATH_LOCAL__STATE_DIR": str(directory),
        "ACEMATH_LOCAL__PORT_BASE": str(base),
        "ACEMATH_LOCAL__PROMETHEUS": "off",
        "ACEMATH_LOCAL__READY_SECONDS": str(int(START_SECONDS)),
    }
    runner = launch(["-m", "acemath_local.run", "--no-sample"], env, directory / "run.out")
    stack = _attached(directory, f"http://127.0.0.1:{base}")
    try:
        started = lambda: _alive(runner, directory) and stack.ready()  # noqa: E731
        stack.wait_until(started, START_SECONDS, "the stack is ready")
        yield stack
    finally:
        runner.terminate()  # as Ctrl-C, and also where the shell ignores that for background jobs
        try:
            runner.wait(180)
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()


def launch(arguments: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Python with these arguments, told by the kernel to stop when this session dies, however it dies."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [*tethered_python(), *arguments], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
        )


def _attached(directory: Path, url: str | None = None) -> RunningStack:
    settings = LocalSettings.read({"ACEMATH_LOCAL__STATE_DIR": str(directory)})
    supervisor = Supervisor(CONFIG, socket_path(settings), {}, directory / "logs" / "unused.log")
    return RunningStack(url or (directory / "run" / "gateway.url").read_text(), supervisor, directory / "logs")


def _alive(runner: subprocess.Popen[bytes], directory: Path) -> bool:
    if runner.poll() is None:
        return True
    raise AssertionError(f"the stack ended with {runner.returncode}:\n{_tail(directory / 'run.out')}")


def _reuse_base_model(directory: Path) -> None:
    """The wheel that an earlier start of this checkout downloaded; its hash is checked again when it is read."""
    target = directory / "cache" / "base-model"
    target.mkdir(parents=True)
    for wheel in (ROOT / ".local" / "cache" / "base-model").glob("*.whl"):
        shutil.copy(wheel, target)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-25:])
