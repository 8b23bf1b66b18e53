"""A server that is told to stop drains first, within its time, unless it is told twice."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from acemath_web import draining
from acemath_web.draining import Drain, DrainingServer


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is asked of it")


def stopped(drain: Drain, *signals: int, seconds: int = 3, keeps: bool = False) -> DrainingServer:
    """Start a server, send it signals, and wait until it has ended."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=seconds)
    server = DrainingServer(config, drain, keeps=keeps)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        for number in signals:
            server.handle_exit(number, None)
            wait_for(lambda: server._draining is not None)
        thread.join(30)
        assert not thread.is_alive()
    return server


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_drains_before_it_stops_and_keeps_the_rest_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    now = 100.0
    monkeypatch.setattr(draining, "time", SimpleNamespace(monotonic=lambda: now))

    async def drain(seconds: float) -> None:
        nonlocal now
        given.append(seconds)
        now += 1.1

    server = stopped(drain, signal.SIGTERM)
    assert given == [3] and server.config.timeout_graceful_shutdown == 2


def test_the_second_interrupt_waits_for_nothing() -> None:
    async def drain(_: float) -> None:
        await asyncio.Event().wait()

    stopped(drain, signal.SIGINT, signal.SIGINT)


def test_a_drain_that_fails_is_told_and_stops_anyway(caplog: pytest.LogCaptureFixture) -> None:
    async def drain(_: float) -> None:
        raise ValueError("no")

    stopped(drain, signal.SIGTERM)
    assert "draining failed" in caplog.text


@pytest.mark.parametrize("keeps", [False, True])
def test_what_start_made_is_kept_from_the_collector_only_where_it_stays(keeps: bool) -> None:
    seen: list[int] = []

    async def drain(_: float) -> None:
        seen.append(gc.get_freeze_count())

    before = gc.get_freeze_count()
    try:
        stopped(drain, signal.SIGTERM, keeps=keeps)
        assert (seen[0] > before) is keeps
    finally:
        gc.unfreeze()
