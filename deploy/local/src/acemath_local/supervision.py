"""One supervisord in a session of its own, and what we ask of it over its socket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

_POLL_SECONDS = 0.1


class SupervisionError(Exception):
    """Supervisor did not start, or did not do what was asked; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What supervisor knows of a program: state (RUNNING, BACKOFF, …), pid (0: none), Unix time of its last start."""

    name: str
    state: str
    pid: int
    started: int
    description: str


class Supervisor:
    """Starts supervisord and stops it; nothing that it started outlives it.

    Args:
        config: a supervisord.conf with a `[unix_http_server]` at `socket`.
        socket: supervisor's control socket.
        env: the environment of supervisor and of its programs.
        log: where supervisord's own messages go before its log file is open.
    """

    def __init__(self, config: Path, socket: Path, env: dict[str, str], log: Path) -> None:
        self._config, self._socket, self._env, self._log = config, socket, env, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 20.0) -> None:
        """Start supervisord, tethered to this process: when we die, it stops everything in order and ends.

        Must be called on the main thread (the tether follows the thread that forks).

        Raises:
            SupervisionError: it ended at once or did not answer in time.
        """
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "acemath_local.tether", f"TERM:{os.getpid()}", "--"]
        command += [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(self._config)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True)  # fmt: skip
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SupervisionError(f"supervisord did not start: see {self._log}")
            _pause(_POLL_SECONDS)

    def alive(self) -> bool:
        """Whether supervisord still runs."""
        return self._process is not None and self._process.poll() is None

    def start_program(self, name: str) -> None:
        """Ask supervisor to start a program; returns at once.

        Raises:
            SupervisionError: supervisor refused.
        """
        self._call("startProcess", name, False)

    def stop_program(self, name: str) -> None:
        """Ask supervisor to stop a program and not to start it again; returns at once.

        Raises:
            SupervisionError: supervisor refused.
        """
        self._call("stopProcess", name, False)

    def states(self) -> dict[str, ProcessState]:
        """The state of every program, by name.

        Raises:
            SupervisionError: supervisor does not answer.
        """
        answer: list[dict[str, Any]] = self._call("getAllProcessInfo")
        return {info["name"]: _state_of(info) for info in answer}

    def stop(self) -> None:
        """Begin an orderly shutdown: programs are stopped by falling priority. Returns at once; `wait` for the end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill_programs(self) -> None:
        """SIGKILL to every program that still runs; directly, since supervisor takes no calls while it shuts down."""
        if self._process is None or self._process.poll() is not None:
            return
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, which is what we want
                os.kill(int(child), signal.SIGKILL)

    def wait(self, timeout: float) -> bool:
        """Wait for supervisord's end; False when it still runs after `timeout` seconds."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _answers(self) -> bool:
        try:
            self._call("getState")
        except SupervisionError:
            return False
        return True

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, xmlrpc.client.Error) as error:
            raise SupervisionError(f"supervisor, {method}: {error}") from error


def _state_of(info: dict[str, Any]) -> ProcessState:
    words = str(info["description"] or info["spawnerr"])
    return ProcessState(info["name"], info["statename"], int(info["pid"]), int(info["start"]), words)


def _pause(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 - a polling loop with a deadline, in a program that does nothing else meanwhile
