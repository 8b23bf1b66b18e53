"""Versions follow the channel: beside the old one, checked, never a third, never dropped while somebody needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from reward.models import ArithmeticModel
from reward.world import S, World

from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_registry.following import SwapStrategy
from acemath_reward.ports import RewardModel, UnsupportedCheckpoint

BOTH = pytest.mark.parametrize("strategy", list(SwapStrategy))


@BOTH
async def test_before_the_first_promotion_it_is_alive_and_not_ready(world: World) -> None:
    await world.reconciler.round()
    assert not world.reconciler.readiness().ready
    with pytest.raises(Unavailable) as refused:
        await world.score()
    assert refused.value.code is ErrorCode.NOT_READY


@BOTH
async def test_the_named_version_becomes_active(world: World) -> None:
    first = world.publish(1)
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    assert world.reconciler.readiness().ready
    assert await world.score() == await world.score(str(first)) == str(first)
    assert world.loaded[0].is_relative_to(world.settings.cache_dir), "a verified private copy, not the mount"
    status = world.registry.read_status("reward", "0")
    assert status["ready"] and status["generation"] == 1
    details: Any = world.reconciler.readiness().details["versions"]
    assert details[str(first)]["batch_invariant"] is True


async def test_a_promotion_loads_beside_the_old_one_and_drops_it_when_nobody_needs_it(world: World) -> None:
    first, second = world.publish(1), world.publish(2)
    old_release = world.promote(first)
    await world.until(v1=S.ACTIVE)
    world.gateway(generation=1)
    world.promote(second)
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    assert await world.score(str(first)) == str(first), "the old one serves until the gateways let go"
    assert await world.score() == str(second)
    world.gateway(generation=2, leases={old_release: 1})
    await world.reconciler.round()
    assert world.states()[str(first)] is S.DRAINING
    world.gateway(generation=2, leases={old_release: 0})
    await world.until(v1=S.RETIRED, v2=S.ACTIVE)
    with pytest.raises(Conflict) as refused:
        await world.score(str(first))
    assert refused.value.code is ErrorCode.MODEL_NOT_SERVED and str(second) in refused.value.message


@pytest.mark.parametrize(
    "record", [None, {"at": 0.0}, {"leases": None}, {"generation": 1}], ids=["missing", "old", "malformed", "behind"]
)
async def test_what_is_not_known_of_a_gateway_keeps_the_old_version(
    world: World, record: dict[str, Any] | None
) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    if record is not None:
        world.gateway(**({"generation": 2} | record))
    world.promote(world.publish(2))
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    for _ in range(5):
        await world.reconciler.round()
    assert world.states()[str(world.publish(1))] is S.DRAINING


async def test_a_version_with_a_call_under_way_is_not_dropped(world: World) -> None:
    first = world.publish(1)
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    with world.reconciler.choose(str(first)).in_use():
        world.promote(world.publish(2))
        await world.until(v2=S.ACTIVE)
        world.gateway(generation=2)
        for _ in range(3):
            await world.reconciler.round()
        assert world.states()[str(first)] is S.DRAINING
    await world.until(v1=S.RETIRED)


async def test_a_rollback_takes_the_draining_version_back_without_loading(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.promote(world.publish(2))
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    world.registry.rollback("default", by="test")
    await world.until(v1=S.ACTIVE, v2=S.DRAINING)
    assert len(world.loaded) == 2


async def test_a_third_version_waits_for_a_place(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.promote(world.publish(2))
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    third = world.publish(3)
    world.promote(third)
    for _ in range(5):
        await world.reconciler.round()
    assert str(third) not in world.states() and len(world.loaded) == 2
    world.gateway(generation=2)  # it routes to the second, and waits for the third
    await world.until(v1=S.RETIRED, v2=S.DRAINING, v3=S.ACTIVE)


async def test_of_several_promotions_only_the_last_is_brought_up(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.gateway(generation=3)
    world.loading.clear()
    world.promote(world.publish(2))
    await world.until(v2=S.STAGING)
    world.promote(world.publish(3))
    await world.reconciler.round()
    world.loading.set()
    await world.until(v2=S.RETIRED, v3=S.ACTIVE)
    assert await world.score() == str(world.publish(3))


@BOTH
async def test_a_bad_checkpoint_changes_nothing_but_a_status_line(world: World) -> None:
    first, second = world.publish(1), world.publish(2)
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    file = world.registry.path(second) / "model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    world.promote(second)
    await world.until(v1=S.ACTIVE, v2=S.REJECTED)
    (slot,) = [slot for slot in world.reconciler.slots() if slot.state is S.REJECTED]
    assert "checksum" in str(slot.reason)
    assert await world.score() == str(first)
    assert world.reconciler.readiness().ready


@BOTH
async def test_a_checkpoint_that_the_engine_does_not_serve_is_rejected(world: World) -> None:
    def refuse(directory: Path) -> RewardModel:
        raise UnsupportedCheckpoint("rotary scaling 'llama3' is not implemented")

    world.make = refuse
    world.promote(world.publish(1))
    await world.until(v1=S.REJECTED)
    assert "llama3" in world.reconciler.readiness().reason


async def test_what_nobody_foresaw_is_tried_again_and_given_up_where_another_version_serves(world: World) -> None:
    crashing = True

    def load(directory: Path) -> RewardModel:
        if crashing:
            raise RuntimeError("CUDA out of memory")  # a predecessor that still has the device, say
        return ArithmeticModel()

    world.make = load
    world.promote(world.publish(1))
    await world.rounds(lambda: "RuntimeError" in world.reconciler.readiness().reason)
    crashing = False
    await world.until(v1=S.ACTIVE)
    crashing = True
    world.gateway(generation=1)
    world.promote(world.publish(2))
    await world.rounds(lambda: world.states().get(str(world.publish(2))) is S.REJECTED)
    assert "RuntimeError; see this replica's log" in str(world.reconciler.slots()[-1].reason)


@BOTH
async def test_a_storage_fault_is_tried_again(world: World) -> None:
    attempts = 0

    def flaky(directory: Path) -> RewardModel:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError("stale file handle")
        return ArithmeticModel()

    world.make = flaky
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    assert attempts == 3


async def test_private_copies_of_dropped_versions_are_removed(world: World) -> None:
    def copies() -> set[str]:
        return {path.name for path in world.settings.cache_dir.glob("rew/[!.]*")}

    first, second = world.publish(1), world.publish(2)
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    world.gateway(generation=2)
    world.promote(second)
    await world.until(v1=S.RETIRED, v2=S.ACTIVE)
    await world.reconciler.round()
    assert copies() == {second.version}


@BOTH
async def test_without_its_engine_thread_a_replica_is_not_ready(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    await asyncio.to_thread(world.batcher.close)
    assert "engine's thread" in world.reconciler.readiness().reason


@BOTH
async def test_the_registry_going_away_does_not_stop_the_service(world: World) -> None:
    first = world.publish(1)
    world.promote(first)
    await world.until(v1=S.ACTIVE)
    world.registry.root.rename(world.registry.root.with_name("away"))
    for _ in range(3):
        await world.reconciler.round()
    assert await world.score() == str(first)
    assert world.reconciler.readiness().ready


async def test_a_load_that_nobody_wants_any_more_keeps_its_place_until_it_has_ended(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.gateway(generation=9)
    world.loading.clear()
    world.promote(world.publish(2))
    await world.rounds(lambda: len(world.loaded) == 2)
    world.promote(world.publish(3))
    for _ in range(20):
        await world.reconciler.round()
        await asyncio.sleep(0.01)
    assert len(world.loaded) == 2, "the first serves and the second is being loaded: a third would not fit"
    assert world.states()[str(world.publish(2))] is S.RETIRED
    world.loading.set()
    await world.until(v1=S.RETIRED, v2=S.RETIRED, v3=S.ACTIVE)
    assert len(world.loaded) == 3


async def test_a_load_that_fails_when_nobody_wants_it_any_more_harms_nobody(world: World) -> None:
    world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    world.gateway(generation=9)
    world.loading.clear()
    second, third = world.publish(2), world.publish(3)

    def make(directory: Path) -> RewardModel:
        if second.version in str(directory):
            raise UnsupportedCheckpoint("no")
        return ArithmeticModel()

    world.make = make
    world.promote(second)
    await world.rounds(lambda: len(world.loaded) == 2)
    world.promote(third)
    await world.reconciler.round()
    world.loading.set()
    await world.until(v2=S.RETIRED, v3=S.ACTIVE)


@BOTH
async def test_closing_waits_for_a_load_under_way(world: World) -> None:
    world.promote(world.publish(1))
    world.loading.clear()
    await world.rounds(lambda: world.loaded)
    closing = asyncio.create_task(world.reconciler.close())
    await asyncio.wait({closing}, timeout=0.1)
    assert not closing.done(), "the thread is still loading"
    world.loading.set()
    await asyncio.wait_for(closing, 60)
