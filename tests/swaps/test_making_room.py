"""Releases change under load where two versions do not fit: requests wait, none fails, and never two are loaded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from swaps.test_swaps import Load, everything_old_is_gone
from swaps.world import SETTLE, World, open_world

import acemath_reward.app
from acemath_registry.following import SwapStrategy
from acemath_reward.reconcile import Reconciler
from doubles.servers import until

pytestmark = pytest.mark.slow
CLIENTS = 8


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(acemath_reward.app, "Reconciler", partial(Reconciler, settle_seconds=SETTLE))
    async with open_world(tmp_path, strategy=SwapStrategy.RESOURCE_PRESERVING) as made:
        yield made


async def test_swaps_under_load_with_one_version_at_a_time(world: World) -> None:
    """Only the policy changes, only the reward model, both, and then back: the old one has to be loaded again."""
    policy, reward = first = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(policy, reward))
    load = Load(world, seconds=120)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    releases = []
    for number in range(3):
        policy = policy if number == 1 else await world.publish("policy")
        reward = reward if number == 0 else await world.publish("reward")
        releases.append((policy, reward))
    await world.engines.prepare(first[0])
    for policy, reward in (*releases, first):
        generation = world.promote(policy, reward)
        await world.until(generation)
        load.latest = generation
        await until(lambda g=generation: bool(load.answers[g] >= 2 or load.wrong), seconds=120)
    load.ending = True
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert not load.wrong
    assert set(load.answers) == set(range(1, 6))
    assert sum(engine.late for engine in world.engines.made) == 0, "nothing is sent to a server that is stopping"
    assert (world.engines.most, max(world.most)) == (1, 1), "never two are loaded"
    await everything_old_is_gone(world, str(first[0]))


async def test_a_bad_half_brings_the_old_one_back_and_no_request_fails(world: World) -> None:
    policy, reward = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(policy, reward))
    load = Load(world, seconds=120)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    await until(lambda: load.answers[1] > 0)
    bad, useless = await world.publish("policy"), await world.publish("reward")
    world.engines.made[-1].name = "somebody else"  # it comes up, and answers as another version
    await world.engines.prepare(policy)
    world.promote(bad, useless)
    await until(lambda: any(s.state.value == "rejected" for s in world.agent.slots()), seconds=120)
    await until(lambda seen=load.answers[1] + CLIENTS + 1: bool(load.answers[1] >= seen or load.wrong), seconds=120)
    load.ending = True
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert not load.wrong and set(load.answers) == {1}
    assert (world.engines.most, max(world.most)) == (1, 1)
