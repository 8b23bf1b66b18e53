"""Runs a program that the kernel signals when its parent dies: `python -m acemath_local.tether TERM -- command …`.

Supervisor is single-threaded, so "the thread that forked dies" and "supervisor dies" are the same event. The setting
survives exec; grandchildren do not have it, which is why the policy agent leads its vLLM servers by shims of their own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tether(number: signal.Signals, parent: int) -> None:
    """Ask for `number` at the death of `parent`, which must be this process's parent.

    Raises:
        OSError: the kernel refused.
        SystemExit: the parent was already gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise SystemExit("the supervisor ended before its program began")


def main() -> None:
    """Tether this process and become the command."""
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        raise SystemExit("usage: python -m acemath_local.tether SIGNAL[:PARENT] -- command …")
    number, _, parent = sys.argv[1].partition(":")
    command = sys.argv[3:]
    tether(signal.Signals[f"SIG{number}"], int(parent or os.getppid()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
