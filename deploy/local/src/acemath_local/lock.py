"""One running stack per state folder."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from acemath_local.settings import Ports


class StackRunsError(Exception):
    """A stack runs already; `pid` is its runner's and `gateway` its address."""

    def __init__(self, pid: int, gateway: str) -> None:
        running = f"this checkout's stack is running already (process {pid}, {gateway})"
        super().__init__(f"{running}: ask it with make solve, or end it with make stop")
        self.pid, self.gateway = pid, gateway


class StackLock:
    """Held by the runner for as long as it lives; the kernel lets go of it however the runner ends.

    Args:
        state_dir: the state folder that must not be used twice.
        gateway: this stack's address, told to whoever finds the lock taken.
        ports: where its services listen, for those who look after it with other settings in their environment.
    """

    def __init__(self, state_dir: Path, gateway: str, ports: Ports) -> None:
        self._path, self._handle = lock_path(state_dir), -1
        self._gateway, self._ports = gateway, ports

    def __enter__(self) -> StackLock:
        """Take the lock.

        Raises:
            StackRunsError: another runner has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise StackRunsError(*holder(self._path)) from None
        os.ftruncate(self._handle, 0)
        document = {"pid": os.getpid(), "gateway": self._gateway, "ports": dataclasses.asdict(self._ports)}
        os.write(self._handle, json.dumps(document).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        os.close(self._handle)


def lock_path(state_dir: Path) -> Path:
    """The lock's file."""
    return state_dir / "run" / "stack.lock"


def holder(path: Path) -> tuple[int, str]:
    """Pid of the runner that wrote the lock's file, and its gateway's address; (0, "") when it cannot be read."""
    try:
        document = json.loads(path.read_text())
        return int(document["pid"]), str(document["gateway"])
    except (OSError, ValueError, KeyError):
        return 0, ""


def holder_ports(path: Path) -> Ports | None:
    """Where the services of the runner that wrote the lock's file listen; None when it does not say."""
    try:
        return Ports(**json.loads(path.read_text())["ports"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_running(state_dir: Path) -> bool:
    """Whether a runner holds the lock now."""
    try:
        with lock_path(state_dir).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
