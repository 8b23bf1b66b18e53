"""One supervised process tree: the shim and everything below it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from acemath_core.processes import shim

_log = logging.getLogger("acemath.child")
_LINE_BYTES = 4096  # of one line of output; the rest of a longer line is cut
_TAIL_LINES = 20
_LOOK_SECONDS = 5.0  # between two looks at the tree
KILL_SECONDS = 1.0  # between TERM and KILL when the pipe ends
_OUTPUT_SECONDS = 2.0  # for the last of the output, once the process has ended
_AFTER_SHIM_SECONDS = 3.0  # the two keepers of the shim take a little longer than their limits


class ProcessTree:
    """A command under the shim; at most one start.

    Args:
        command: what to run.
        environment: all of its environment.
        label: names the process in the log.
        term_seconds: how long it may take after TERM before it is killed.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, label: str, term_seconds: float
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._label, self._term_seconds = label, term_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._output: asyncio.ReadTransport | None = None
        self._ended = asyncio.Event()
        self._looked = -_LOOK_SECONDS
        self._known: dict[int, int] = {}  # pid → start time, of what was seen below the shim
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def pid(self) -> int | None:
        """The shim's process id, which is also the id of its process group; None before the start."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs; 128 + n after signal n."""
        code = self._process.returncode if self._process else None
        return code if code is None or code >= 0 else 128 - code

    async def start(self) -> None:
        """Start the command.

        Raises:
            OSError: it cannot be started.
        """
        limits = ("--term-seconds", str(self._term_seconds), "--kill-seconds", str(KILL_SECONDS))
        arguments = [sys.executable, "-I", "-S", shim.__file__, *limits, "--", *self._command]
        self._process = self._spawn(arguments)
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        # A pidfd (pidfd_open(2)) tells of the shim's end alone; asyncio's own wait() also waits for the output's end.
        pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(pidfd, self._on_end, pidfd)
        protocol = asyncio.StreamReaderProtocol(reader)
        self._output, _ = await loop.connect_read_pipe(lambda: protocol, self._process.stdout)
        self._reading = asyncio.create_task(self._read(reader))

    def _spawn(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )

    def _on_end(self, pidfd: int) -> None:
        assert self._process is not None and self._process.stdin is not None
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._process.wait()  # it has ended: this only collects it
        self._process.stdin.close()
        self._sweep()
        self._ended.set()

    def remember(self, *, now: bool = False) -> None:
        """Note what is below the shim, so that it is found even if the shim's keepers are killed together.

        Args:
            now: look even if the last look was a moment ago; one look reads a line for every process of the machine.
        """
        if self._process is None or self._process.returncode is not None:
            return
        if now or time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            seen = ((pid, start_time(pid)) for pid in shim.descendants(self._process.pid))
            self._known = {pid: begun for pid, begun in seen if begun is not None}

    async def stop(self) -> None:
        """TERM, wait until it has finished what it had, KILL what is left."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._end(self._term_seconds + _AFTER_SHIM_SECONDS)

    async def kill(self) -> None:
        """End it within a few seconds, whatever it has."""
        await self._end(0.0)

    async def wait(self) -> int:
        """Wait for the end and for the last of its output; returns the exit status."""
        await self._ended.wait()
        await self._read_rest()
        assert self.status is not None
        return self.status

    async def _read_rest(self) -> None:
        if self._reading is not None and self._output is not None:
            await asyncio.wait({self._reading}, timeout=_OUTPUT_SECONDS)
            self._output.close()

    async def _end(self, patience: float) -> None:
        if self._process is None:
            return
        for step in (None, self._close_pipe, self._kill_group):
            if step is not None:
                step()
                patience = KILL_SECONDS + _AFTER_SHIM_SECONDS
            if patience > 0 and await self._gone(patience):
                await self._read_rest()
                return
        _log.error("%s: process group %s is still there after KILL", self._label, self.pid)

    async def _gone(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _close_pipe(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()

    def _kill_group(self) -> None:
        self.remember(now=True)
        self._sweep()

    def _sweep(self) -> None:
        """Kill the group, and what was seen below the shim and still is the same process; as a rule nothing is left."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid, begun in self._known.items():
            if start_time(pid) == begun:
                shim.send(pid, signal.SIGKILL)
        self._known = {}

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Pass the output on line by line; it must always be read, or the program would block on a full pipe."""
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._note(line)
            rest = rest[:_LINE_BYTES]
        self._note(rest)

    def _note(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode(errors="replace").rpartition("\r")[2].rstrip()
        if text:
            self.tail.append(text)
            _log.info("%s", text, extra={"version": self._label})


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (proc_pid_stat(5), field 22); None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] != "Z" else None
