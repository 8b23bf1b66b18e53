"""Gateways tell each other how long candidates get, on a real server of the Redis protocol."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from acemath_gateway.adapters import redis_lengths
from acemath_gateway.adapters.redis_lengths import share_lengths
from acemath_gateway.adapters.redis_link import RedisLink
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.places import Capacity, Places
from acemath_gateway.shared import running
from doubles.gateway_app import eventually


@asynccontextmanager
async def gateway(url: str, instance: str):
    """The places of one gateway that tells and hears."""
    places = Places(None, DoorMetrics.on(CollectorRegistry()).max_sequences)
    places.replicas([Capacity(4096, 100_000)])
    link = RedisLink(url, timeout_seconds=5, on_change=lambda up: None)
    await link.connect()
    try:
        async with running("share", share_lengths(link, instance, places)), running("watch", link.watch()):
            yield places
    finally:
        await link.close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """They tell twenty times a second."""
    monkeypatch.setattr(redis_lengths, "ASSERT_SECONDS", 0.05)


async def test_one_that_starts_has_the_others_bound(valkey):
    async with gateway(valkey.url, "a") as a:
        for _ in range(400):
            a.ended(0, [100] * 16, [])
        async with gateway(valkey.url, "b") as b:
            await eventually(lambda: abs(a.now() - b.now()) <= 1 and b.now() > 800)
            for _ in range(400):
                b.ended(0, [300] * 16, [])
            await eventually(lambda: abs(a.now() - b.now()) <= 1 and a.now() == pytest.approx(500, rel=0.05))


@pytest.mark.parametrize("record", ["nan 512 {now}", "0 512 {now}", "512 0 {now}", "x", "1 2 3 4", "5 inf {now}"])
async def test_a_record_that_cannot_be_read_is_nobodys(valkey, record):
    now = int(valkey.ask("TIME").split(b"\r\n")[2]) * 1000
    valkey.ask(f'HSET acemath:limit:lengths odd "{record.format(now=now)}"')
    async with gateway(valkey.url, "a") as a, gateway(valkey.url, "b") as b:
        for _ in range(400):
            a.ended(0, [100] * 16, [])
        await eventually(lambda: abs(a.now() - b.now()) <= 1 and b.now() > 800)


async def test_who_has_ended_is_forgotten(valkey, monkeypatch):
    monkeypatch.setattr(redis_lengths, "_KEPT_SECONDS", 1)
    async with gateway(valkey.url, "a") as a:
        for _ in range(400):
            a.ended(0, [100] * 16, [])
        alone = a.now()
        async with gateway(valkey.url, "b"):
            await eventually(lambda: a.now() < alone)
        await eventually(lambda: abs(a.now() - alone) <= 1)


async def test_while_redis_is_away_what_was_heard_still_counts(valkey):
    async with gateway(valkey.url, "a") as a, gateway(valkey.url, "b") as b:
        for _ in range(400):
            a.ended(0, [100] * 16, [])
        await eventually(lambda: abs(a.now() - b.now()) <= 1 and b.now() > 800)
        valkey.stop()
        b.ended(0, [100] * 16, [])
        await asyncio.sleep(0.5)  # ten times that it would have been told
        assert b.now() > 800
        valkey.start()
        for _ in range(400):
            b.ended(0, [400] * 16, [])
        await eventually(lambda: abs(a.now() - b.now()) <= 1 and a.now() < 500)
