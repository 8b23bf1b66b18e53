"""The version of a release that gets a share is kept ready beside the active one, exactly as long as it has to be."""

from __future__ import annotations

import json
import time
from typing import Any

from registry.tiny import METADATA, write_checkpoint
from reward.models import ArithmeticModel
from reward.world import SETTLE, S, World

from acemath_registry import ModelRef
from acemath_reward.ports import UnsupportedCheckpoint


def release_of(world: World, reward: ModelRef) -> str:
    """With the policy of the current release."""
    current = world.registry.release(world.registry.channel("default").release)
    return world.registry.create_release(current.policy.ref, reward).id


def share(world: World, reward: ModelRef, of: float = 0.1) -> str:
    release = release_of(world, reward)
    world.registry.canary("default", release, of, by="test")
    return release


async def serving(world: World) -> str:
    """Version 1 serves; its release."""
    release = world.promote(world.publish(1))
    await world.until(v1=S.ACTIVE)
    return release


async def some_rounds(world: World) -> None:
    for _ in range(5):
        await world.reconciler.round()


async def test_it_is_ready_beside_the_active_one_and_scores_by_name(world: World) -> None:
    await serving(world)
    share(world, world.publish(2))
    await world.until(v1=S.ACTIVE, v2=S.READY)
    await some_rounds(world)
    assert len(world.loaded) == 2 and world.states() == {
        str(world.publish(1)): S.ACTIVE,
        str(world.publish(2)): S.READY,
    }
    second = str(world.publish(2))
    assert await world.score() == str(world.publish(1)) and await world.score(second) == second


async def test_its_promotion_costs_no_load_and_a_rollback_neither(world: World) -> None:
    await serving(world)
    release = share(world, world.publish(2))
    await world.until(v2=S.READY)
    world.registry.promote("default", release, expected_generation=None, by="test")
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    world.registry.rollback("default", by="test")
    await world.until(v1=S.ACTIVE, v2=S.DRAINING)
    share(world, world.publish(2), 0.2)
    await world.until(v1=S.ACTIVE, v2=S.READY)
    assert len(world.loaded) == 2


async def test_after_its_end_it_stays_until_records_show_that_no_gateway_uses_it(world: World) -> None:
    """A newer generation alone shows nothing: gateways give a share by what they saw of the replicas."""
    first = await serving(world)
    release = share(world, world.publish(2))
    await world.until(v2=S.READY)
    world.registry.stop_canary("default", by="test")
    world.gateway(generation=3, release=first)
    await world.until(v1=S.ACTIVE, v2=S.DRAINING)
    (drained,) = [slot.since for slot in world.reconciler.slots() if slot.state is S.DRAINING]
    for record in ({"at": drained + SETTLE / 2}, {"leases": {release: 1}}, {"release": None}, {"at": 0.0}):
        told: dict[str, Any] = {"generation": 3, "release": first, "at": drained + 2 * SETTLE}
        world.gateway(**(told | record))
        await some_rounds(world)
        assert world.states()[str(world.publish(2))] is S.DRAINING, record
    world.gateway(generation=3, release=first, at=drained + 2 * SETTLE)
    await world.until(v1=S.ACTIVE, v2=S.RETIRED)


async def test_one_that_is_rejected_changes_nothing_and_is_not_tried_again(world: World) -> None:
    await serving(world)
    bad = world.publish(2)
    world.make = lambda path: (_ for _ in ()).throw(UnsupportedCheckpoint("not this one"))
    share(world, bad)
    await world.until(v1=S.ACTIVE, v2=S.REJECTED)
    await some_rounds(world)
    assert len(world.loaded) == 2 and world.states()[str(bad)] is S.REJECTED
    world.make = lambda path: ArithmeticModel()
    world.registry.stop_canary("default", by="test")
    share(world, world.publish(3))
    await world.until(v1=S.ACTIVE, v3=S.READY)


async def test_it_waits_for_a_place_and_makes_none(world: World) -> None:
    await serving(world)
    second = world.promote(world.publish(2))
    await world.until(v1=S.DRAINING, v2=S.ACTIVE)
    share(world, world.publish(3))
    await some_rounds(world)
    assert str(world.publish(3)) not in world.states(), "two versions live: the old one is still needed"
    world.gateway(generation=3, release=second)
    await world.until(v1=S.RETIRED, v2=S.ACTIVE, v3=S.READY)


async def test_a_promotion_of_another_release_gets_its_place(world: World) -> None:
    first = await serving(world)
    share(world, world.publish(2))
    await world.until(v2=S.READY)
    world.promote(world.publish(3))

    def arrived() -> bool:
        world.gateway(generation=1, release=first, at=time.time())
        return world.states().get(str(world.publish(3))) is S.ACTIVE

    await world.rounds(arrived)
    assert world.states()[str(world.publish(1))] is S.DRAINING and world.states()[str(world.publish(2))] is S.RETIRED


async def test_the_same_version_in_both_releases_is_one(world: World) -> None:
    await serving(world)
    source = write_checkpoint(world.directory / "export-other-policy", mark="other")
    policy = world.registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    release = world.registry.create_release(policy, world.publish(1)).id
    world.registry.canary("default", release, 0.5, by="test")
    await some_rounds(world)
    world.registry.stop_canary("default", by="test")
    await some_rounds(world)
    assert world.states() == {str(world.publish(1)): S.ACTIVE} and len(world.loaded) == 1


async def test_a_canary_that_cannot_be_read_holds_nothing_up(world: World) -> None:
    await serving(world)
    release = share(world, world.publish(2))
    path = world.registry.root / "releases" / f"{release}.json"
    whole = path.read_bytes()
    path.write_text(json.dumps({}))
    await some_rounds(world)
    assert world.states() == {str(world.publish(1)): S.ACTIVE} and world.reconciler.readiness().ready
    path.write_bytes(whole)
    await world.until(v2=S.READY)
