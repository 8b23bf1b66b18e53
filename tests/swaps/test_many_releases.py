"""Gateway, agent and reward service follow a channel through many releases; nothing is kept for each of them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from swaps.world import World, open_world

from acemath_registry.following import leases
from doubles.census import census, grown
from doubles.servers import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BEFORE, AFTER = 11, 5
"""Releases until every bounded memory of old ones is full (the last eight versions that ended are shown), and more."""


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(leases, "_REMEMBERED", 1)  # a memory of releases that has its bound, sooner full
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps what a record was made of
    async with open_world(tmp_path) as made:
        yield made


async def follow(world: World, releases: int) -> None:
    """So many more, each with its answer; the versions before have ended."""
    for _ in range(releases):
        policy, reward = await world.publish("policy"), await world.publish("reward")
        await world.until(world.promote(policy, reward))
        assert (await world.solve(2)).target.policy == str(policy)
        await until(lambda: world.alive() == 1, seconds=120)
        await until(lambda name=str(policy): running(world) == [name], seconds=120)


def running(world: World) -> list[str]:
    return [engine.name for engine in world.engines.made if not engine.ended]


async def test_nothing_grows_with_the_number_of_releases(world: World) -> None:
    await follow(world, BEFORE)
    before = census(world.figures)
    await follow(world, AFTER)
    left = dict[str, tuple[int, int]]()

    def same() -> bool:  # what a poll holds for a moment comes and goes
        nonlocal left
        left = grown(before, census(world.figures))
        return not left

    try:
        await until(same, seconds=60)
    except TimeoutError:
        pytest.fail(f"more than before, with counts of then and now: {left}")
