"""What the machine is, and who else uses it while a system is measured."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_MIB_KIB = 1024
WINDOW_SECONDS = 0.1


def described() -> dict[str, Any]:
    """CPU, cores, flags that matter for bfloat16, memory, kernel; a GPU's name is in the facts of its legs."""
    text = Path("/proc/cpuinfo").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in lines.items()}
    flags = sorted(f for f in named.get("flags", "").split() if f.startswith("amx") or f in ("avx512_bf16", "avx512f"))
    return {
        "cpu": named.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": flags,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy since it started, stolen ones included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def session_processes(leader: int) -> list[Path]:
    """The processes of a session, as folders below /proc."""
    return [path for path in Path("/proc").glob("[0-9]*") if _stat(path)[3:4] == [str(leader)]]


def session_cpu_seconds(leader: int) -> float:
    """CPU seconds of a session's processes, those of their ended children included."""
    stats = [_stat(path) for path in session_processes(leader)]
    return sum(sum(map(int, stat[11:15])) for stat in stats if stat) / _TICKS


def session_peak_mib(leader: int) -> float:
    """Sum of the largest resident sizes of a session's processes; pages that they share count more than once."""
    found = 0
    for path in session_processes(leader):
        lines = _text(path / "status").splitlines()
        found += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(found / _MIB_KIB, 1)


def _stat(path: Path) -> list[str]:
    """What follows the name in parentheses; nothing when the process is gone."""
    return _text(path / "stat").rpartition(")")[2].split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended between the listing and now
        return ""


@dataclass(frozen=True, slots=True)
class Quiet:
    """How quiet the machine was before a measurement.

    Attributes:
        load: load average of the last minute, in which earlier legs still count.
        busy_cores: cores in use right now, by anybody.
        waited: seconds waited for it to fall.
    """

    load: float
    busy_cores: float
    waited: float


def wait_until_quiet(limit: float, patience: float) -> Quiet:
    """Return when at most `limit` cores are in use, or after `patience` seconds.

    The load average alone would not do: it falls from 2 to 0.2 in more than two minutes after the leg before.
    """
    started = time.monotonic()
    while True:
        now, before = time.monotonic(), busy_seconds()
        time.sleep(WINDOW_SECONDS)
        busy = (busy_seconds() - before) / (time.monotonic() - now)
        waited = time.monotonic() - started
        if busy <= limit or waited >= patience:
            return Quiet(round(os.getloadavg()[0], 2), round(busy, 2), round(waited, 1))
