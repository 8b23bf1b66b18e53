"""Runs one command so that nothing of it is left, however the processes above or below it die.

    agent ── pipe ──> outer keeper ── pipe ──> inner keeper ──> vLLM's API server ──> engine ──> workers

This program is both keepers: with `--depth 2` its command is itself with `--depth 1`. Each keeper is a child subreaper
(prctl(2)), so whatever loses its parent below becomes the keeper's own child, and walking /proc from the keeper finds
it even if it has left the process group. vLLM's engine overwrites its environment with its title, so a marker in the
environment would not do.

    TERM              goes to the command alone; what is left after `--term-seconds` is killed
    end of the pipe   (the process above is gone, or wants us gone) goes on to the keeper below; the inner one sends
                      TERM to everything below it that had none yet; what is left after `--kill-seconds` is killed
    command gone      what is left below is killed; the exit status is the command's

Killing one keeper leaves the other: the outer one sees its child end, the inner one the end of its pipe. The command
gets SIGKILL from the kernel when the inner keeper dies, in case both do. Standard library only; Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
SCAN_SECONDS = 0.05  # between two looks at what is still alive while killing
OUTER_EXTRA_SECONDS = 1.0  # the outer keeper waits longer, so that the inner one comes first


class Keeper:
    """One command and everything below it.

    Args:
        command: what to run.
        stdin: file descriptor for the command's standard input; None gives it a pipe that we hold.
        term_seconds: how long the command may take after TERM.
        kill_seconds: how long everything below may take after the end of our pipe.
    """

    def __init__(self, command: list[str], *, inner: bool, term_seconds: float, kill_seconds: float) -> None:
        self._command, self._inner = command, inner
        self._term_seconds, self._kill_seconds = term_seconds, kill_seconds
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._terminated = False
        self._asked: set[int] = set()
        self._status: int | None = None  # the command's, as waitpid(2) gives it

    def run(self) -> int:
        """Run the command to its end, or to ours; returns the exit status, 128 + n after signal n."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_term)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that it wakes the wait
        # Ours to reap by waitpid(-1), like everything that is re-parented to us.
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL if self._inner else subprocess.PIPE,
            preexec_fn=die_with_parent if self._inner else None,
        )
        try:
            self._watch(child)
        finally:
            self._kill_all()
        return exit_status(self._status)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        """Return when the command is gone, or has had its time."""
        until: float | None = None
        passed_on, pipe_open = False, True
        while not self._reap(child.pid):
            if self._terminated and not passed_on:
                passed_on, until = True, earlier(until, self._term_seconds)
                self._ask_to_stop(child.pid)
            if until is not None and time.monotonic() >= until:
                return
            if self._wait(pipe_open, until):
                pipe_open, until = False, earlier(until, self._kill_seconds)
                self._release(child)

    def _wait(self, pipe_open: bool, until: float | None) -> bool:
        """Sleep until a signal, the end of the pipe (True) or `until`."""
        watched = [self._wake_read, 0] if pipe_open else [self._wake_read]
        readable, _, _ = select.select(watched, [], [], None if until is None else max(0.0, until - time.monotonic()))
        if self._wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        return 0 in readable and not os.read(0, 4096)  # nobody writes into the pipe; only its end means anything

    def _release(self, child: subprocess.Popen[bytes]) -> None:
        """The process above is gone: pass its end on, or ask everything below to stop."""
        if child.stdin is not None:
            child.stdin.close()
        else:
            for pid in descendants(os.getpid()):
                self._ask_to_stop(pid)

    def _ask_to_stop(self, pid: int) -> None:
        """TERM, once: a second one would kill a process that has put its handlers down already and is about to end."""
        if pid not in self._asked:
            self._asked.add(pid)
            send(pid, signal.SIGTERM)

    def _reap(self, child: int) -> bool:
        """Collect whoever has ended; whether the command has."""
        with contextlib.suppress(ChildProcessError):  # nobody is left to collect
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == child:
                    self._status = status
        return self._status is not None

    def _kill_all(self) -> None:
        """KILL until nothing is below us; bounded, since a process in an uninterruptible wait cannot be helped."""
        until = time.monotonic() + self._kill_seconds
        while (alive := descendants(os.getpid())) and time.monotonic() < until:
            for pid in alive:
                send(pid, signal.SIGKILL)
            select.select([], [], [], SCAN_SECONDS)
            self._reap(-1)
        self._reap(-1)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (prctl(2)); runs between fork and exec."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may already be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def earlier(until: float | None, seconds: float) -> float:
    """The earlier of a time and `seconds` from now, on the monotonic clock."""
    new = time.monotonic() + seconds
    return new if until is None else min(until, new)


def exit_status(status: int | None) -> int:
    """A shell's exit status for a waitpid(2) status; 137 for a command that had to be killed."""
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def descendants(root: int) -> list[int]:
    """The living processes below `root`, from /proc; a zombie is not alive."""
    parents = dict(filter(None, (parent_of(entry) for entry in os.listdir("/proc") if entry.isdigit())))
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, (parent, _) in parents.items() if parent in frontier}
        found += [pid for pid in frontier if parents[pid][1] != "Z"]
    return found


def parent_of(pid: str) -> tuple[int, tuple[int, str]] | None:
    """(pid, (parent, state)) from proc_pid_stat(5), None if the process is gone; the name in it may hold anything."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return int(pid), (int(parent), state)


def main(arguments: list[str]) -> int:
    """`shim.py --depth N --term-seconds T --kill-seconds K -- command …`; standard input is the pipe."""
    parser = argparse.ArgumentParser(prog="acemath-shim", allow_abbrev=False)
    parser.add_argument("--depth", type=int, choices=(1, 2), default=2)
    parser.add_argument("--term-seconds", type=float, required=True)
    parser.add_argument("--kill-seconds", type=float, default=2.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    inner = options.depth == 1
    command, extra = options.command, 0.0
    if not inner:
        limits = ["--term-seconds", str(options.term_seconds), "--kill-seconds", str(options.kill_seconds)]
        command = [sys.executable, "-I", "-S", __file__, "--depth", "1", *limits, "--", *command]
        extra = OUTER_EXTRA_SECONDS
    keeper = Keeper(
        command,
        inner=inner,
        term_seconds=options.term_seconds + extra,
        kill_seconds=options.kill_seconds + extra,
    )
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
