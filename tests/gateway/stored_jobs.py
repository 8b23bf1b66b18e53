"""Stores of jobs on a real server, as their tests open them, and what time does to their lines."""

from __future__ import annotations

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
    pending = valkey.ask(f"XPENDING {_lines_of(line)} workers {line.line}-0 {line.line}-0 1").split(b"\r\n")
    return int(pending[6][1:]) / 1000


def grow_idle(valkey: ValkeyServer, *lines: TakenLine, seconds: float = 3600.0) -> None:
    """As if so much time had passed for these lines; who has them, and how often they were taken, stays."""
    for line in lines:
        pending = valkey.ask(f"XPENDING {_lines_of(line)} workers {line.line}-0 {line.line}-0 1").split(b"\r\n")
        older = int(pending[6][1:]) + int(1000 * seconds)
        claim = f"XCLAIM {_lines_of(line)} workers {pending[5].decode()} 0 {line.line}-0 IDLE {older} JUSTID"
        assert valkey.ask(claim).startswith(b"*1"), claim


def _lines_of(line: TakenLine) -> str:
    return f"acemath:job:{line.job}:lines"
