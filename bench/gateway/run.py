"""The rounds: every server, every n, every rate; the document is written after each step."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.gateway.load import Load, Target, due_times, offer
from bench.gateway.servers import Bench, Leg, ServerFailed
from bench.reward.machine import busy_seconds, session_cpu_seconds, session_peak_mib, wait_until_quiet

WARM_UP = 20.0, 3.0
"""Requests a second, and seconds, of a load that is not counted, after each start."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        legs: in the order of the first round; the next one goes backwards.
        counts: candidates a request.
        rates: requests a second.
        rounds: how often.
        seconds: of each load.
        patience: seconds that a request may take after the last one was due.
        quiet: cores that others may use when a load begins.
        quiet_patience: seconds that waiting for that may take, each time.
    """

    legs: Sequence[Leg]
    counts: Sequence[int]
    rates: Sequence[float]
    rounds: int
    seconds: float
    patience: float
    quiet: float
    quiet_patience: float


class Runner:
    """Runs a plan into a document.

    Args:
        plan: what is measured.
        bench: where.
        document: what is known before; `cells` is added to.
        out: where the document is written.
    """

    def __init__(self, plan: Plan, bench: Bench, document: dict[str, Any], out: Path) -> None:
        self._plan, self._bench, self._document, self._out = plan, bench, document, out
        self._cells: list[dict[str, Any]] = document.setdefault("cells", [])
        self._failed: dict[str, str] = document.setdefault("failed", {})

    def run(self) -> None:
        """All rounds."""
        for turn in range(self._plan.rounds):
            for leg in self._plan.legs[:: -1 if turn % 2 else 1]:
                if leg.name not in self._failed:
                    self._leg(leg, turn)
                self.write()

    def _leg(self, leg: Leg, turn: int) -> None:
        counts = list(self._plan.counts)
        groups = [[n] for n in counts] if leg.per_n else [counts]
        try:
            for group in groups:
                todo = [(n, rate) for n in group for rate in self._plan.rates]
                while todo:  # a server that was flooded is started again for the next load
                    todo = self._started(leg, turn, todo)
        except ServerFailed as error:
            self._failed[leg.name] = str(error)
            say(f"{leg.name} FAILED: {error}")

    def _started(self, leg: Leg, turn: int, todo: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Start the server, load it as planned until a load floods it; gives what is left to do."""
        with leg.start(self._bench, todo[0][0]) as process:
            self._offered(leg.target(self._bench, todo[0][0]), due_times(*WARM_UP, seed=0))
            for place, (n, rate) in enumerate(todo):
                load = self._cell(leg, turn, n, rate, process.pid if process else None)
                if load.unanswered:
                    return todo[place + 1 :]
        return []

    def _cell(self, leg: Leg, turn: int, n: int, rate: float, leader: int | None) -> Load:
        quiet = wait_until_quiet(self._plan.quiet, self._plan.quiet_patience)
        seed = random.Random(f"{turn} {n} {rate}").randrange(2**31)  # the same times for every server
        times = due_times(rate, self._plan.seconds, seed)
        own, everybody, self_before = _cpu(leader), busy_seconds(), time.process_time()
        load = self._offered(leg.target(self._bench, n), times)
        own, everybody = _cpu(leader) - own, busy_seconds() - everybody
        cell: dict[str, Any] = {"leg": leg.name, "n": n, "rate": rate, "round": turn, "sent": len(times)}
        cell |= {"answered": len(load.latencies), "failed": load.failed, "unanswered": load.unanswered}
        cell |= {f"p{100 * share:g}": _ms(load.percentile(share)) for share in (0.5, 0.9, 0.99)}
        cell |= {"largest": _ms(max(load.latencies, default=None)), "seconds": load.seconds}
        cell["server_cpu_seconds"] = round(own, 2) if leader else None
        cell["server_peak_mib"] = session_peak_mib(leader) if leader else None
        cell["other_cores"] = round((everybody - own) / load.seconds, 2)
        cell["load_cores"] = round((time.process_time() - self_before) / load.seconds, 2)
        cell["busy_before"] = quiet.busy_cores
        self._cells.append(cell)
        say("{leg} n={n} {rate:g}/s: p50 {p50} ms, p99 {p99} ms, {answered} of {sent}".format(**cell))
        return load

    def _offered(self, target: Target, times: Sequence[float]) -> Load:
        async def offering() -> Load:
            return await offer(target, times, patience=self._plan.patience)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(offering())

    def write(self) -> None:
        """Replace the document."""
        self._out.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._out.with_name(f".{self._out.name}.new")
        fresh.write_text(json.dumps(self._document, indent=1) + "\n")
        fresh.replace(self._out)


def pin(core: int) -> None:
    """Run this process, which makes the load, on one core."""
    os.sched_setaffinity(0, {core})


def _cpu(leader: int | None) -> float:
    return session_cpu_seconds(leader) if leader else 0.0


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def say(text: str) -> None:
    """Progress, for who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
