"""Whose memory it is that stays: the stack's processes by what they do."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

Sample = dict[str, Any]
ROLES = {
    "acemath_gateway": "gateway",
    "acemath_answers.worker": "gateway's answer workers",
    "acemath_policy": "policy agent",
    "vllm": "vLLM",
    "acemath_reward": "reward",
    "valkey-server": "Redis",
    "redis-server": "Redis",
    "prometheus": "Prometheus",
}
"""What a process does, by the module that it runs or its program's name; its children do the same unless named here."""


class Watch:
    """The processes of a stack.

    Args:
        pid: its first process.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def now(self) -> Sample:
        """How many there are, the sum of their resident memory in MiB, and the sum by what they do.

        What several processes share counts for each of them, so a sum may be above what is used.
        """
        sizes: dict[int, float] = {}
        roles: dict[int, str] = {}
        for one in [self._root, *self._root.children(recursive=True)]:  # parents come before their children
            with contextlib.suppress(psutil.Error):  # it ended between the question and the answer
                sizes[one.pid] = one.memory_info().rss / 2**20
                roles[one.pid] = role(one.cmdline()) or roles.get(one.ppid(), "supervisor")
        names = sorted(set(roles.values()))
        by = {name: round(sum(size for pid, size in sizes.items() if roles.get(pid) == name), 1) for name in names}
        return {"processes": len(sizes), "memory_mib": round(sum(sizes.values())), "by": by}


def role(command: Sequence[str]) -> str | None:
    """What a process does, by its command line; None where that does not say."""
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    program = Path(command[0]).name if command else ""
    return next((does for mark, does in ROLES.items() if (module or program).startswith(mark)), None)


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By what they do: MiB in the first and in the last quarter of the samples (medians), and a line's slope.

    The slope is of least squares, in MiB a sample; none of under four samples.
    """
    if len(samples) < 4:
        return {}
    quarter = len(samples) // 4
    names = sorted({name for one in samples for name in one["by"]})
    found = {}
    for name in names:
        values = [float(one["by"].get(name, 0.0)) for one in samples]
        slope = statistics.linear_regression(range(len(values)), values).slope
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        found[name] = {"first": first, "last": last, "mib_a_swap": round(slope, 3)}
    return found
