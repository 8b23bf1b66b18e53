"""The stack's processes: who is the victim, how many there are, and what the dead left in the registry."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from acemath_registry.stores.staging import STALE_STAGING_S
from bench.kills.__main__ import VICTIMS, is_named
from bench.kills.__main__ import Stack as Parts
from bench.swapkills.matrix import Victim
from bench.swapkills.view import Pair

PARTS = {Victim.AGENT: "policy", Victim.REWARD: "reward", Victim.GATEWAY: "gateway", Victim.REDIS: "redis"}
_REPLACING = re.compile(r"\..+\.[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Processes:
    """Those below the stack's first one.

    Attributes:
        root: the first.
        parts: finds services by their program.
    """

    root: psutil.Process
    parts: Parts

    def count(self) -> int:
        """How many there are; those that have ended and wait for their parent are none."""
        return 1 + sum(_status(process) not in (None, psutil.STATUS_ZOMBIE) for process in self._below())

    def victim(self, who: Victim, old: Pair, new: Pair) -> psutil.Process | None:
        """The process that is to die; None while there is none.

        Of a vLLM server it is the engine or, before it has one, the server itself.
        """
        if who in PARTS:
            with contextlib.suppress(LookupError):
                return self.parts.find(PARTS[who])
            return None
        version = {Victim.OLD_VLLM: old.policy, Victim.NEW_VLLM: new.policy}.get(who)
        lines = [(process, line) for process in self._below() if (line := _line(process))]
        server = serving([line for _, line in lines], version)
        if server is None:
            return None
        below = [one for one in _children(lines[server][0]) if is_named(_line(one), VICTIMS["vllm"])]
        return below[0] if below else lines[server][0]

    def _below(self) -> list[psutil.Process]:
        return self.root.children(recursive=True)


def serving(lines: Sequence[Sequence[str]], version: str | None) -> int | None:
    """Which of these commands, parents before their children, is the server of a version; None when none is.

    Its two keepers have the server's whole command in their own.
    """
    found = [
        number
        for number, line in enumerate(lines)
        if version and ("--served-model-name", version) in itertools.pairwise(line)
    ]
    return found[-1] if len(found) > 2 else None  # before that only the keepers run


def left_over(registry: Path) -> list[str]:
    """Publishers' folders, relative: none while nobody publishes."""
    return [str(path.relative_to(registry)) for path in sorted((registry / "staging").glob("*"))]


def make_old(registry: Path) -> None:
    """As if two days had passed since publishers died: a younger folder is never swept, its publisher may well live."""
    then = time.time() - 2 * STALE_STAGING_S
    for path in (registry / "staging").glob("*"):
        os.utime(path, (then, then))


def files_left(registry: Path) -> int:
    """Files by which a document was to be replaced when its writer died: `gc` takes them when they are old."""
    return sum(_REPLACING.match(path.name) is not None for path in registry.rglob(".*"))


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _status(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return str(process.status())
    return None
