"""The resource-preserving swap of the reward service: the old model is let go before the new one is loaded."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from reward.models import ArithmeticModel
from reward.world import S, World

from acemath_core.errors import ErrorCode, Unavailable
from acemath_registry.following import SwapStrategy
from acemath_reward.ports import RewardModel, UnsupportedCheckpoint

pytestmark = pytest.mark.parametrize("strategy", [SwapStrategy.RESOURCE_PRESERVING])


async def told(world: World, condition: Callable[[], object], **says: object) -> None:
    """Rounds until a condition holds, while a gateway looks and writes all the time."""

    def look() -> object:
        world.gateway(**({"generation": 1} | says))  # type: ignore[arg-type]
        return condition()

    await world.rounds(look)


def state(world: World, seed: int) -> S | None:
    return world.states().get(str(world.publish(seed)))


async def swap(world: World) -> str:
    """The first version serves, and is gated for the second; returns the first release."""
    first = world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.promote(world.publish(2))
    await told(world, lambda: state(world, 1) is S.DRAINING, release=first, leases={first: 1})
    return first


async def test_the_old_model_makes_room_once_no_job_holds_it(world: World) -> None:
    alive: list[weakref.ref[ArithmeticModel]] = []

    def make(directory: Path) -> RewardModel:
        assert not any(model() is not None for model in alive), "two are in memory"
        model = ArithmeticModel()
        alive.append(weakref.ref(model))
        return model

    world.make = make
    gc.collect()
    first = await swap(world)
    for _ in range(20):
        await world.reconciler.round()
    assert [slot.gated for slot in world.reconciler.slots()] == [True, False]
    assert world.reconciler.readiness().ready and state(world, 2) is S.VERIFYING
    assert await world.score(str(world.publish(1))) == str(world.publish(1)), "who holds it goes on"
    with pytest.raises(Unavailable) as refused:
        await world.score()
    assert refused.value.code is ErrorCode.NOT_READY and "waits for its place" in refused.value.message
    await told(world, lambda: state(world, 2) is S.ACTIVE, release=first)
    assert state(world, 1) is S.RETIRED and len(world.loaded) == 2


async def test_a_version_with_a_call_under_way_is_not_stopped(world: World) -> None:
    first = await swap(world)
    with world.reconciler.choose(str(world.publish(1))).in_use():
        waiting = "requests are running"
        await told(world, lambda: waiting in str(world.reconciler.readiness().details["waiting"]), release=first)
        assert state(world, 1) is S.DRAINING
    await told(world, lambda: state(world, 2) is S.ACTIVE, release=first)


async def test_a_rollback_opens_the_gate(world: World) -> None:
    await swap(world)
    world.registry.rollback("default", by="test")
    await world.until(v1=S.ACTIVE, v2=S.RETIRED)
    assert await world.score() == str(world.publish(1)) and len(world.loaded) == 1


async def test_a_new_model_that_cannot_be_loaded_brings_the_old_one_back(world: World) -> None:
    def make(directory: Path) -> RewardModel:
        if world.publish(2).version in str(directory):
            raise UnsupportedCheckpoint("no")
        return ArithmeticModel()

    world.make = make
    first = await swap(world)
    await told(world, lambda: state(world, 2) is S.REJECTED and state(world, 1) is S.ACTIVE, release=first)
    await asyncio.sleep(0)
    assert await world.score() == str(world.publish(1))


async def test_a_wrong_template_is_found_before_anything_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)

    def refuse(copy: Path, manifest: object) -> None:
        raise UnsupportedCheckpoint("its prompts are not the trainer's")

    monkeypatch.setattr("acemath_reward.lifting._check_prompts", refuse)
    world.promote(world.publish(2))
    await told(world, lambda: state(world, 2) is S.REJECTED, release=first)
    assert state(world, 1) is S.ACTIVE and len(world.loaded) == 1
