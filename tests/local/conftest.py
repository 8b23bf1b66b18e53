"""A supervised stack of tiny real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
PROGRAM = """
[program:{name}]
command="{python}" -m acemath_local.tether KILL -- {command}
priority={priority}
autostart=false
autorestart=true
startsecs=1
startretries=1000
stopwaitsecs=10
redirect_stderr=true
stdout_logfile={logs}/{name}.log
"""
HEAD = """
[unix_http_server]
file={socket}
[supervisord]
nodaemon=true
silent=true
logfile={logs}/supervisord.log
pidfile={logs}/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


@dataclass
class TinyStack:
    """A runner process and what it started."""

    directory: Path
    socket: Path
    services: list[dict[str, object]] = field(default_factory=list)
    programs: str = ""
    ready_seconds: float = 30
    runner: subprocess.Popen[str] | None = None

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def add(
        self, name: str, port: int, *, needs: tuple[str, ...] = (), start: float = 0, drain: float = 0,
        optional: bool = False,
    ) -> None:  # fmt: skip
        arguments = f"{name} {port} {self.journal} {start} {drain}"
        command = f'"{sys.executable}" {HERE / "tiny_service.py"} {arguments}'
        self.add_command(name, port, command, needs, optional=optional)

    def add_command(
        self, name: str, port: int, command: str, needs: tuple[str, ...] = (), *, optional: bool = False
    ) -> None:
        priority = 10 + len(self.services)
        self.services.append({"name": name, "port": port, "needs": needs, "optional": optional})
        self.programs += PROGRAM.format(
            name=name, python=sys.executable, command=command, priority=priority, logs=self.directory
        )

    def launch(self) -> None:
        config = self.directory / "supervisord.conf"
        config.write_text(HEAD.format(socket=self.socket, logs=self.directory) + self.programs)
        spec = {
            "config": str(config), "socket": str(self.socket), "env": dict(os.environ), "services": self.services,
            "log": str(self.directory / "out.log"), "logs": str(self.directory), "ready_seconds": self.ready_seconds,
        }  # fmt: skip
        (self.directory / "spec.json").write_text(json.dumps(spec))
        self.runner = subprocess.Popen(
            [sys.executable, str(HERE / "tiny_runner.py"), str(self.directory / "spec.json")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # A shell's background job ignores the interrupt, and so would whatever it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def said_until_ready(self) -> str:
        assert self.runner is not None and self.runner.stdout is not None
        said = ""
        for line in self.runner.stdout:
            said += line
            if line.strip() == "READY":
                break
        return said

    def events(self) -> list[tuple[str, str, int]]:
        """(service, what, pid) in the order in which they happened."""
        lines = sorted(self.journal.read_text().splitlines(), key=lambda line: float(line.split()[0]))
        return [(name, what, int(pid)) for _, name, what, pid in (line.split() for line in lines)]

    def pid(self, name: str, what: str = "ready") -> int:
        return [pid for who, event, pid in self.events() if (who, event) == (name, what)][-1]

    def supervisor_pid(self) -> int:
        return int((self.directory / "supervisord.pid").read_text())


@pytest.fixture
def tiny_stack(tmp_path: Path) -> Iterator[TinyStack]:
    """An empty stack; whatever it started is killed by process id at the end."""
    with tempfile.TemporaryDirectory(prefix="ace") as short:  # a Unix socket's path has 108 bytes at most
        stack = TinyStack(tmp_path, Path(short) / "s.sock")
        yield stack
        if stack.runner is None:
            return
        try:
            family = [psutil.Process(stack.runner.pid), *psutil.Process(stack.runner.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        stack.runner.send_signal(signal.SIGKILL)
        for process in family:
            if process.is_running():
                process.kill()
        stack.runner.wait(10)
        if stack.runner.stdout is not None:
            stack.runner.stdout.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], None]:
    """Wait until a condition holds, at most some seconds."""

    def wait(condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.05)

    return wait


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Whether a process has ended (a zombie has)."""

    def is_gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return is_gone
