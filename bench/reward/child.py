"""The side of a leg that runs in the benchmark: a process in a session of its own, stopped while it is not its turn."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.reward.groups import Group, Scores
from bench.reward.machine import busy_seconds, session_cpu_seconds, session_peak_mib, session_processes

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 20.0


class ChildFailed(Exception):
    """The leg's process ended, took too long, or answered with an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gave.

    Attributes:
        seconds: of each call, by the child's clock.
        scores: of each call.
        cpu_seconds: of the leg's processes.
        foreign_cores: cores that others used meanwhile, on average.
    """

    seconds: list[float]
    scores: list[Scores]
    cpu_seconds: float
    foreign_cores: float


class Child:
    """A leg's process.

    Args:
        python: interpreter.
        module: below `bench.reward.legs`.
        options: for its `create`.
        environment: added to ours; None takes a name away.
        log: where its standard error goes.
        patience: seconds that a start or a request may take.
    """

    def __init__(
        self, python: str, module: str, options: dict[str, Any], environment: dict[str, str], log: Path, patience: float
    ) -> None:
        self._log, self._patience, self._rest = log, patience, b""
        command = [python, "-m", "bench.reward.worker", f"bench.reward.legs.{module}", json.dumps(options)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            hello = self._read()
        except BaseException:
            self.close()
            raise
        self.start_seconds = float(hello["seconds"])
        self.facts: dict[str, Any] = hello["facts"]
        self._signal(signal.SIGSTOP)

    @property
    def peak_mib(self) -> float:
        """Largest resident sizes of its processes, added up."""
        return session_peak_mib(self._process.pid)

    def ask(self, calls: Sequence[Sequence[Group]], options: dict[str, Any]) -> Answer:
        """Score the calls one after the other.

        Raises:
            ChildFailed: see there.
        """
        request = {"calls": [[group.to_json() for group in call] for call in calls], "options": options}
        leader = self._process.pid
        self._signal(signal.SIGCONT)
        own, everybody, began = session_cpu_seconds(leader), busy_seconds(), time.monotonic()
        self.send(request)
        found = self._read()
        elapsed = time.monotonic() - began
        own, everybody = session_cpu_seconds(leader) - own, busy_seconds() - everybody
        self._signal(signal.SIGSTOP)
        foreign = max(0.0, everybody - own) / elapsed
        return Answer(found["seconds"], found["scores"], round(own, 2), round(foreign, 2))

    def send(self, request: dict[str, Any]) -> None:
        """Hand a request over without waiting for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(self._ended()) from error

    def _read(self) -> dict[str, Any]:
        """The next answer."""
        until = time.monotonic() + self._patience
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise ChildFailed(f"no answer after {self._patience:.0f} s; {self._last_words()}")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise ChildFailed(self._ended())
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ChildFailed(f"{found['error']}; {self._last_words()}")
        return found

    def _ended(self) -> str:
        return f"its process ended; {self._last_words()}"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its last words: {' | '.join(lines[-3:])[-600:]}"

    def _signal(self, number: signal.Signals) -> None:
        for path in session_processes(self._process.pid):
            _send(int(path.name), number)

    def close(self) -> None:
        """End its session: let it end by itself, then kill what is left."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # what is left is killed below
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait(END_SECONDS)
        self._process.stdout.close()


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process, number)
