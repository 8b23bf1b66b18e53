"""Runs of free loopback ports for processes that are told their ports before they open them.

They lie below the kernel's ephemeral range (32768 upwards on Linux), so that no outgoing connection takes one between
the question and the answer, and no run is given twice. A process that opens its own listener needs none of this: it
binds port 0.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _LAST, _RUN = 12_000, 32_000, 20
# Sessions beside each other begin elsewhere; the workers of one session begin together and take turns.
_begin = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(0, _LAST - _FIRST, _RUN)
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_next_run = itertools.count(_worker, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def free_run(count: int = 1) -> int:
    """The first of `count` (at most 20) consecutive ports that nobody listens on.

    Raises:
        AssertionError: no such run is left on this machine.
    """
    assert 0 < count <= _RUN, count
    for _ in range((_LAST - _FIRST) // _RUN):
        first = _FIRST + (_begin + next(_next_run) * _RUN) % (_LAST - _FIRST)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError(f"no {count} free ports in a row between {_FIRST} and {_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
