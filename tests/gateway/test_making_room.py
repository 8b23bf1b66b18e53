"""New jobs wait while a replica makes room for the next version, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from gateway.releases_world import ACTIVE, DRAINING, P1, P2, R1, R2, READY, A, B, World

from acemath_core.errors import ErrorCode, Unavailable
from acemath_core.wire import SlotState
from doubles.servers import until

KINDS = pytest.mark.parametrize(
    ("urls", "version"), [((P1, P2), A.policy), ((R1, R2), A.reward)], ids=["policy", "reward"]
)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.poll()
    yield made


async def gate(world: World, urls: tuple[str, ...], version: str) -> None:
    for url in urls:
        world.slots.states[url][version] = DRAINING
    world.slots.gated.update(urls)
    await world.poll()


async def take(world: World, seconds: float = 10.0) -> str:
    async with world.lease("key", seconds) as target:
        assert target.policy_endpoints and target.reward_endpoints
        return target.release


@KINDS
async def test_new_jobs_wait_through_a_swap_and_those_that_hold_it_go_on(
    world: World, urls: tuple[str, ...], version: str
) -> None:
    async with world.lease("key") as held:
        await gate(world, urls, version)
        assert held.policy_endpoints == ("http://v1", "http://v2") and world.leases is not None
        waiting = [asyncio.create_task(take(world, 60)) for _ in range(3)]
        await asyncio.sleep(0)
    for url in urls:
        world.slots.states[url] = {version: SlotState.RETIRED}
    await world.poll()
    readiness = world.tracker.readiness()
    assert readiness.ready and version in str(readiness.details["making_room"])
    assert not any(task.done() for task in waiting)
    assert world.metric("leases", age="current") == 0, "who waits holds nothing"
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    await world.poll()
    assert await asyncio.gather(*waiting) == [B.release] * 3
    assert world.tracker.readiness().details["making_room"] is None


@KINDS
async def test_they_go_on_with_the_old_one_when_it_is_kept(world: World, urls: tuple[str, ...], version: str) -> None:
    await gate(world, urls, version)
    waiting = asyncio.create_task(take(world))
    await asyncio.sleep(0)
    for url in urls:
        world.slots.states[url][version] = ACTIVE
    await world.poll()
    assert await waiting == A.release


async def test_the_deadline_comes_first(world: World) -> None:
    await gate(world, (P1, P2), A.policy)
    with pytest.raises(Unavailable) as caught:
        await take(world, 0.01)
    assert caught.value.code is ErrorCode.NOT_READY and caught.value.retry_after
    assert "being replaced" in caught.value.message


async def test_where_one_replica_makes_room_the_others_go_on(world: World) -> None:
    await gate(world, (P1,), A.policy)
    async with world.lease("key") as target:
        assert target.policy_endpoints == ("http://v2",)
    assert world.tracker.readiness().details["making_room"] is None


async def test_another_reason_is_told_at_once_also_after_a_swap(world: World) -> None:
    await gate(world, (P1, P2), A.policy)
    for url in (P1, P2):
        world.slots.states[url][A.policy] = ACTIVE
    await world.poll()
    del world.slots.states[P1], world.slots.states[P2]
    for _ in range(2):
        await world.poll()
    with pytest.raises(Unavailable) as caught:
        await take(world)
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE


async def test_a_version_that_makes_room_is_never_flipped_to(world: World) -> None:
    world.channel.pointers = (B, A)
    world.everywhere(B, DRAINING)
    world.slots.gated.update((P1, P2, R1, R2))
    world.channel.others = (B,)
    await world.poll()
    assert world.release() == A.release
    fresh = World(start_grace_seconds=0.0)
    fresh.channel.pointers = (B, A)
    await gate(fresh, (P1, P2), A.policy)
    assert fresh.release() is None and "makes room" not in str(fresh.tracker.readiness().details.get("making_room"))


async def test_a_record_says_how_old_the_view_is_by_which_leases_are_given(world: World) -> None:
    before = time.time()
    await world.poll()
    seen = world.tracker._ledger._viewed()
    assert before - 0.01 <= seen <= time.time()
    missed = world.slots.states.pop(P1)
    await world.poll()
    assert world.tracker._ledger._viewed() == pytest.approx(seen, abs=0.01), "one missed: what it said before is shown"
    world.slots.states[P1] = missed
    later = time.time()
    await world.poll()
    await until(lambda: world.tracker._ledger._viewed() >= later - 0.01)
