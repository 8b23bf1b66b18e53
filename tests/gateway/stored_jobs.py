"""Stores of jobs on a real server, as their tests open them, and what time does to their lines."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

from acemath_core.jobs import LineState
from acemath_gateway.adapters.redis_jobs import RedisJobStore
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.jobqueue.store import Finished, NewJob, Rules, TakenLine
from acemath_gateway.shared import running
from doubles.valkey import ValkeyServer

RULES = Rules(10, 1000, 10_000, window_seconds=60, kept_seconds=60, idle_seconds=60)


@asynccontextmanager
async def store(url: str, rules: Rules = RULES, name: str = "a"):
    """One gateway's; nothing beats by itself, so that it is a dead one's once nothing is called any more."""
    link = RedisLink(url, timeout_seconds=3.0, on_change=lambda up: None)
    opened = RedisJobStore(link, rules, instance=name)
    await link.connect()
    opened._others_rest_until = 0.0
    try:
        async with running("watch", link.watch()):
            yield opened
    finally:
        await link.close()


def job(name: str = "j", lines: int = 3, **other) -> NewJob:
    bodies = [f'{{"problem": "{i}"}}'.encode() for i in range(1, lines + 1)]
    return NewJob(**{"id": name, "owner": "me", "fingerprint": "f", "lines": bodies, "webhook_url": None} | other)


def done(line: int, state: LineState = LineState.SUCCEEDED, row: bytes | None = None) -> Finished:
    return Finished(state, row or f'{{"line": {line}}}'.encode(), 10, 20)


def idle_seconds(valkey: ValkeyServer, line: TakenLine) -> float:
    """How long nobody has said that it has the line, by the server's clock."""
    return next(idle_ms / 1000 for number, _, idle_ms in _taken(valkey, line.job) if number == line.line)


def grow_idle(valkey: ValkeyServer, job_id: str, seconds: float = 3600.0) -> None:
    """As if so much time had passed for each line that is taken; who has it, and how often it was taken, stays."""
    for number, worker, idle_ms in _taken(valkey, job_id):
        lines, older = f"acemath:job:{job_id}:lines", idle_ms + int(1000 * seconds)
        claimed = valkey.ask(f"XCLAIM {lines} workers {worker} 0 {number}-0 IDLE {older} JUSTID")
        assert claimed.startswith(b"*1"), claimed


def _taken(valkey: ValkeyServer, job_id: str) -> list[tuple[int, str, int]]:
    """Number, worker and idle time in ms of each line that is taken."""
    pending = valkey.ask(f"XPENDING acemath:job:{job_id}:lines workers - + 100")
    entries = re.findall(rb"\*4\r\n\$\d+\r\n(\d+)-0\r\n\$\d+\r\n(.*?)\r\n:(\d+)\r\n", pending)
    return [(int(number), worker.decode(), int(idle_ms)) for number, worker, idle_ms in entries]
