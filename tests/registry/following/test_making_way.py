"""One loaded version at a time: whatever happens at whatever step, never two, never one stopped that a job holds."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.following.making_way_world import TIMEOUT, Bad, Flaw, World, member

from acemath_core.wire import SlotState as S
from acemath_registry import PublishMetadata, Registry
from acemath_registry.following import (
    ENDED,
    Desired,
    StatusRefusals,
    SwapStrategy,
)
from doubles.servers import until


@pytest.fixture
async def world(registry: Registry) -> World:
    made = World(registry)
    made.promote(1)
    await made.until(lambda: made.state(1) is S.ACTIVE and made.gateways.routed == (1, 1))
    made.gateways.leased.add(1)
    made.promote(2)
    await made.until(lambda: made.state(1) is S.DRAINING)
    return made


async def test_the_old_version_goes_first_when_no_job_holds_it(world: World) -> None:
    old = world.find(1)
    assert old is not None and old.gated and "makes room for p@s2" in str(old.reason)
    wanted = world.find(2)
    assert wanted is not None and wanted.state is S.VERIFYING and wanted.reason == "verified; waits for its place"
    for _ in range(30):
        await world.round()
        world.now += 1
        world.gateways.look()
    assert world.state(1) is S.DRAINING and "holds leases" in str(world.places.waiting)
    world.gateways.leased.clear()
    await world.until(lambda: world.state(2) is S.ACTIVE)
    assert world.state(1) is S.RETIRED and world.loaded == {member(2)} and world.way.waiting is None


async def test_what_gateways_saw_must_be_newer_than_the_gating(world: World) -> None:
    world.gateways.leased.clear()
    world.gateways.viewed = world.now
    for _ in range(40):
        world.now += 1
        await world.round()
    assert world.state(1) is S.DRAINING and "has seen" in str(world.way.waiting)


async def _unknown(world: World) -> None:
    world.gateways.unknown = "gateway g: its record is 100 s old"


async def _old_gateway(world: World) -> None:
    world.gateways.look = lambda: None  # type: ignore[method-assign]
    world.gateways.viewed = None


async def _rolled_back(world: World) -> None:
    world.promote(1)


async def _superseded(world: World) -> None:
    world.faults[member(3), "verify"] = Bad("checksum")
    world.promote(3)


async def _timed_out(world: World) -> None:
    world.now += TIMEOUT


@pytest.mark.parametrize("happens", [_unknown, _old_gateway, _rolled_back, _superseded, _timed_out])
async def test_until_the_stop_everything_can_be_taken_back(world: World, happens: Callable[[World], object]) -> None:
    await happens(world)  # type: ignore[misc]
    await world.until(lambda: world.state(1) is S.ACTIVE)
    old = world.find(1)
    assert old is not None and not old.gated and world.loaded == {member(1)}
    if happens is _timed_out:
        await world.until(lambda: world.state(2) is S.REJECTED)
        rejected = world.find(2)
        assert rejected is not None and "within 300 s: g: it holds leases" in str(rejected.reason)
        world.gateways.leased.clear()
        world.promote(2)
        await world.until(lambda: world.state(2) is S.ACTIVE)
    await world.end()


@pytest.mark.parametrize("known", [True, False], ids=["gateways known", "no gateway routes"])
@pytest.mark.parametrize("fault", [Bad("canary"), Flaw("out of memory")])
async def test_a_new_version_that_fails_after_the_stop_brings_the_old_one_back(
    world: World, fault: Exception, known: bool
) -> None:
    world.faults[member(2), "stage"] = fault
    world.gateways.leased.clear()
    await world.until(lambda: world.state(1) is S.RETIRED)
    if not known:
        world.gateways.routed = None
    await world.until(lambda: world.state(1) is S.ACTIVE)
    assert world.state(2) is S.REJECTED
    for _ in range(30):
        await world.round()
    assert world.state(2) is S.REJECTED and world.loaded == {member(1)}
    world.promote(4)
    await world.until(lambda: world.state(4) is S.ACTIVE)


async def test_a_restart_in_the_middle_converges(world: World) -> None:
    world.gateways.leased.clear()
    await world.end()
    world.start()
    await world.until(lambda: world.state(1) is S.ACTIVE)
    await world.until(lambda: world.state(2) is S.ACTIVE)
    assert world.loaded == {member(2)}


@pytest.mark.parametrize("loaded", [False, True], ids=["while it waits", "once it is loaded"])
async def test_a_new_version_whose_other_half_was_refused_makes_nobody_go(world: World, loaded: bool) -> None:
    if loaded:
        world.gateways.flips = False
        world.gateways.leased.clear()
        await world.until(lambda: world.state(2) is S.ACTIVE)
    world.halves.add(2)
    await world.until(lambda: world.state(2) is S.REJECTED and world.state(1) is S.ACTIVE)
    rejected = world.find(2)
    assert rejected is not None and "reward/0 refused" in str(rejected.reason) and world.loaded == {member(1)}
    world.gateways.flips = True
    world.gateways.leased.clear()
    world.promote(3)
    await world.until(lambda: world.state(3) is S.ACTIVE)


@pytest.mark.parametrize("held", [True, False])
async def test_an_old_engine_that_dies_while_gated_is_started_again_for_jobs_that_hold_it_only(
    world: World, held: bool
) -> None:
    if not held:
        world.gateways.leased.clear()
    world.crash(1)
    await world.until(lambda: world.state(1) is (S.DRAINING if held else S.RETIRED))
    world.gateways.leased.clear()
    await world.until(lambda: world.state(2) is S.ACTIVE)


async def test_a_first_version_does_not_wait_and_is_tried_for_ever(registry: Registry) -> None:
    world = World(registry)
    world.gateways.unknown = "no gateway has written a record"
    world.faults[member(1), "stage"] = Flaw("no port")
    world.promote(1)
    await world.round()
    await until(lambda: bool((found := world.find(1)) and found.failures > 3))
    world.faults.clear()
    await until(lambda: world.state(1) is S.READY)
    await world.end()


async def test_a_share_cannot_run_beside_and_it_is_said(registry: Registry) -> None:
    world = World(registry)
    world.promote(1)
    await world.until(lambda: world.state(1) is S.ACTIVE)
    world.canary = 2
    for _ in range(5):
        await world.round()
    assert world.state(2) is None and "p@s2-aaaaaaaaaaaa gets no share here" in str(world.places.waiting)


async def test_the_default_strategy_loads_beside_the_old_one(registry: Registry) -> None:
    world = World(registry, SwapStrategy.AVAILABILITY_PRESERVING)
    world.promote(1)
    await world.until(lambda: world.state(1) is S.ACTIVE)
    world.promote(2)
    await world.until(lambda: world.state(2) is S.ACTIVE)
    assert world.loaded == {member(1), member(2)} and world.state(1) is S.DRAINING


@pytest.mark.parametrize("seed", range(10))
def test_never_two_never_a_held_one_and_the_last_good_one_or_the_old_one_serves(seed: int, registry: Registry) -> None:
    """Anything at any time: promotions, bad versions, crashes, restarts, gateways that are away, jobs that stay."""

    async def live(chance: random.Random) -> None:
        world = World(registry)
        world.promote(1)
        await world.until(lambda: world.state(1) is S.ACTIVE)
        bad = {number: Bad("bad") for number in (4, 5)}
        world.halves = {3}
        world.faults = {(member(4), "verify"): bad[4], (member(5), "stage"): bad[5]}
        for _ in range(150):
            await happen(world, chance)
            await world.round()
            world.now += chance.choice((1, 1, 5, 100))
        world.gateways.unknown = None
        world.gateways.leased.clear()
        world.promote(5)
        await world.until(lambda: world.state(5) is S.REJECTED and _serves(world))
        world.promote(9)
        await world.until(lambda: world.state(9) is S.ACTIVE and world.gateways.routed == (9, world.generation))
        assert world.loaded == {member(9)} and all(v.state in ENDED for v in world.versions.living[:-1])
        await world.end()

    for life in range(5):
        asyncio.run(live(random.Random(100 * seed + life)))


def _serves(world: World) -> bool:
    return any(version.state is S.ACTIVE for version in world.versions.living)


async def happen(world: World, chance: random.Random) -> None:
    lot, gateways = chance.random(), world.gateways
    if lot < 0.08:
        world.promote(chance.choice((1, 2, 3, 4, 5)))
    elif lot < 0.12:
        gateways.unknown = None if gateways.unknown else "away"
    elif lot < 0.15:
        world.crash(chance.choice((1, 2, 3)))
    elif lot < 0.17:
        await world.end()
        world.start()
    elif lot < 0.30:
        gateways.lease()
    elif lot < 0.50:
        gateways.leased.clear()
    elif lot < 0.90:
        gateways.look()
    for _ in range(chance.choice((0, 1, 3))):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({}, True),
        ({"generation": 1}, False),
        ({"waiting": "p@s2 waits for a place"}, False),
        ({"at": 0.0}, False),
        ({"at": None}, False),
        ({"channel": "candidate"}, False),
        ({"channel": "default"}, True),
        ({"slots": None}, False),
        ({"slots": [{"version": "VERSION", "state": "rejected"}, {"version": "VERSION", "state": "staging"}]}, False),
        ({"slots": [{"version": "VERSION", "state": "rejected"}, {"version": "other", "state": "active"}]}, True),
        (None, False),
    ],
)
async def test_a_refusal_is_read_from_a_fresh_record_of_this_generation(
    registry: Registry, make_checkpoint: Callable[..., Path], record: dict[str, Any] | None, found: bool
) -> None:
    metadata = PublishMetadata(step=1, licence="Apache-2.0")
    policy = registry.publish(make_checkpoint("policy"), name="p", kind="policy", metadata=metadata)
    reward = registry.publish(make_checkpoint("reward"), name="r", kind="reward", metadata=metadata)
    release = registry.create_release(policy, reward)
    slots = [{"version": str(reward), "state": "rejected"}]
    if record is not None:
        written = {"generation": 2, "at": 1000.0, "waiting": None, "slots": slots} | record
        document = json.loads(json.dumps(written).replace("VERSION", str(reward)))
        registry.write_status("reward", "0", document)
    refusals = StatusRefusals(registry, "default", now=lambda: 1020.0)
    said = await refusals.of(Desired(release.policy, release.id, 2))
    assert said == (f"reward/0 refused {reward} of {release.id}" if found else None)
    assert await refusals.of(Desired(release.policy, "r-000000000000", 2)) is None, "a release that cannot be read"
