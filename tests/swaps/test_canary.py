"""A release gets a share of the requests under load: the right ones, whole, and nobody fails when it comes or goes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from swaps.test_swaps import CANDIDATES, Load
from swaps.world import World, open_world

from acemath_core.wire import SlotState
from acemath_gateway.canary import CanaryState, in_share
from acemath_gateway.ports import ReleaseRole
from doubles.servers import until

pytestmark = pytest.mark.slow
CLIENTS = 8


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    async with open_world(tmp_path) as made:
        yield made


@dataclass
class SharedLoad(Load):
    """Clients that know who has to answer them: `offered` is the canary's release and share, None while it moves.

    Attributes:
        settled: answers since `offered` was set, by the role of the release.
    """

    offered: tuple[str, float] | None = None
    settled: dict[ReleaseRole, int] = field(default_factory=lambda: dict.fromkeys(ReleaseRole, 0))
    asked: int = 0

    def offer(self, release: str, share: float) -> None:
        self.settled = dict.fromkeys(ReleaseRole, 0)
        self.offered = release, share

    async def client(self) -> None:
        while not self.ending:
            self.asked += 1
            key, offered, admitted = f"request-{self.asked}", self.offered, self.latest
            try:
                outcome = await self.world.solve(CANDIDATES, id=key)
            except Exception as error:  # whatever it is, a client has seen it
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            self.check(outcome, admitted)
            if offered is not None and offered is self.offered:
                release, share = offered
                role = outcome.target.role
                self.settled[role] += 1
                mine = in_share(release, share, key)
                if mine != (role is ReleaseRole.CANARY) or mine != (outcome.target.release == release):
                    self.wrong.append(f"{key} of {share} of {release} got {outcome.target}")

    async def enough(self, *roles: ReleaseRole) -> None:
        await until(lambda: bool(self.wrong or all(self.settled[role] >= 8 for role in roles)), seconds=120)


def slots(world: World) -> dict[str, SlotState]:
    ended = (SlotState.RETIRED, SlotState.REJECTED)
    return {slot.version: slot.state for slot in world.agent.slots() if slot.state not in ended}


async def serving(world: World) -> None:
    def serves() -> bool:
        view = world.tracker.canary()
        return view is not None and view.state is CanaryState.SERVING

    await until(serves, seconds=120)


async def test_a_share_comes_grows_ends_and_becomes_all_under_load(world: World) -> None:
    registry = world.registry
    policy, reward = await world.publish("policy"), await world.publish("reward")
    await world.until(world.promote(policy, reward))
    load = SharedLoad(world)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    other = await world.publish("policy")
    tried = registry.create_release(other, await world.publish("reward")).id

    registry.canary("default", tried, 0.4, by="test")
    await serving(world)
    load.offer(tried, 0.4)
    await load.enough(*ReleaseRole)
    assert slots(world) == {str(policy): SlotState.ACTIVE, str(other): SlotState.READY}

    load.offered = None
    generation = registry.canary("default", tried, 0.8, by="test").generation
    await world.until(generation)
    load.latest = generation  # from now on, whoever asks gets it
    load.offer(tried, 0.8)
    await load.enough(*ReleaseRole)

    load.offered = None
    generation = registry.stop_canary("default", by="test").generation
    await world.until(generation)
    load.latest = generation
    load.offer(tried, 0.0)
    await load.enough(ReleaseRole.CURRENT)
    assert world.tracker.canary() is None
    await until(lambda: slots(world) == {str(policy): SlotState.ACTIVE}, seconds=120)

    load.offered = None
    next_release = registry.create_release(await world.publish("policy"), reward)  # only the policy is another one
    registry.canary("default", next_release.id, 0.5, by="test")
    await serving(world)
    load.offer(next_release.id, 0.5)
    await load.enough(*ReleaseRole)
    load.offered = None
    generation = registry.promote("default", next_release.id, expected_generation=None, by="test").generation
    await world.until(generation)
    load.latest = generation
    before = load.answers[load.latest]
    await until(lambda: bool(load.wrong or load.answers[load.latest] >= before + 8), seconds=120)

    load.ending = True
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert not load.wrong
    assert sum(engine.late for engine in world.engines.made) == 0, "nothing is sent to a server that is stopping"
    named = str(next_release.policy.ref)
    await until(lambda: slots(world) == {named: SlotState.ACTIVE}, seconds=120)
    assert len([engine for engine in world.engines.made if engine.name == named]) == 1, "its promotion cost no start"
