"""Releases change under load: no answer mixes two of them, none fails, nothing is asked of what is stopping."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from swaps.world import World, open_world

from acemath_gateway.jobs import Outcome
from doubles.servers import until

pytestmark = pytest.mark.slow
SWAPS, CLIENTS, CANDIDATES = 6, 16, 8


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    async with open_world(tmp_path) as made:
        yield made


@dataclass
class Load:
    """Clients that ask one question after the other, with `seconds` for each, and check every answer."""

    world: World
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latest: int = 0
    ending: bool = False
    seconds: float = 60.0

    async def client(self) -> None:
        while not self.ending:
            admitted = self.latest
            try:
                outcome = await self.world.solve(CANDIDATES, seconds=self.seconds)
            except Exception as error:  # whatever it is, a client has seen it
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            self.check(outcome, admitted)

    def check(self, outcome: Outcome, admitted: int) -> None:
        target = outcome.target
        self.answers[target.generation] += 1
        release = self.world.registry.release(target.release)
        if (target.policy, target.reward) != (str(release.policy.ref), str(release.reward.ref)):
            self.wrong.append(f"{target} is not {release}")
        if target.generation < admitted:
            self.wrong.append(f"generation {target.generation} after {admitted}")
        written = {item.text.partition(":")[0] for item in outcome.candidates}
        scored = {item.score for item in outcome.candidates}
        if written != {target.policy} or scored != {self.world.scores[target.reward]}:
            self.wrong.append(f"{target.release}: written by {written}, scored by {scored}")
        ends = {item.finish_reason.value for item in outcome.candidates}
        if (outcome.n_generated, outcome.n_scored, outcome.degraded_reason) != (CANDIDATES, CANDIDATES, None):
            self.wrong.append(f"{outcome.n_generated} generated, {outcome.n_scored} scored, {outcome.degraded_reason}")
        if ends != {"stop"}:
            self.wrong.append(f"ended by {ends}")


async def test_swaps_under_load(world: World) -> None:
    """Only the policy changes, only the reward model, both, and so on; each as soon as the one before was seen."""
    policy, reward = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(policy, reward))
    load = Load(world)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    for number in range(SWAPS):
        policy = policy if number % 3 == 1 else await world.publish("policy")
        reward = reward if number % 3 == 0 else await world.publish("reward")
        generation = world.promote(policy, reward)
        await world.until(generation)
        load.latest = generation
        before = load.answers[generation]
        await until(lambda seen=before + 2, g=generation: bool(load.answers[g] >= seen or load.wrong), seconds=120)
    load.ending = True
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert not load.wrong
    assert set(load.answers) == set(range(1, SWAPS + 2))
    assert sum(load.answers.values()) >= CLIENTS + 2 * SWAPS
    assert sum(engine.late for engine in world.engines.made) == 0, "nothing is sent to a server that is stopping"
    await everything_old_is_gone(world, str(policy))


async def everything_old_is_gone(world: World, policy: str) -> None:
    """One engine, one reward model, one private copy of each: what there was at the start."""

    def gone() -> bool:
        running = [engine.name for engine in world.engines.made if not engine.stopping]
        copies = [*world.folder.glob("policy/models/*/s*"), *world.folder.glob("reward/*/s*")]
        return running == [policy] and len(copies) == 2 and world.alive() == 1

    await until(gone, seconds=120)


async def test_a_rollback_under_load(world: World) -> None:
    policy, reward = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(policy, reward))
    load = Load(world)
    clients = [asyncio.create_task(load.client()) for _ in range(4)]
    other_policy, other_reward = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(other_policy, other_reward))
    back = await asyncio.to_thread(world.registry.rollback, "default", by="test")
    await world.until(back.generation)
    load.latest = back.generation
    outcome = await world.solve()
    load.ending = True
    await asyncio.gather(*clients)
    assert not load.wrong
    assert (outcome.target.policy, outcome.target.reward) == (str(policy), str(reward))
    assert len([engine for engine in world.engines.made if engine.name == str(policy)]) == 1, "it cost no start"
