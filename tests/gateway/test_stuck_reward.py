"""A reward service whose engine computes nothing gets no jobs, though its version is active."""

from __future__ import annotations

from gateway.releases_world import ACTIVE, P1, R1, R2, A, World


async def test_it_is_left_out_until_it_computes_again() -> None:
    world = World()
    await world.poll()
    world.everywhere(A, ACTIVE)
    world.slots.stuck.add(R1)
    await world.poll()
    async with world.lease("key") as target:
        assert target.reward_endpoints == (R2,) and len(target.policy_endpoints) == 2
    world.slots.stuck.clear()
    await world.poll()
    async with world.lease("key") as target:
        assert set(target.reward_endpoints) == {R1, R2}


async def test_where_all_are_stuck_callers_are_told_at_once() -> None:
    world = World()
    world.slots.stuck.update((R1, R2))
    await world.poll()
    assert not world.tracker.readiness().ready
    world.slots.stuck.clear()
    world.slots.stuck.add(P1)
    await world.poll()
    assert world.tracker.readiness().ready
    world.slots.stuck = {R1, R2}
    await world.poll()
    async with world.lease("key") as target:
        assert target.reward_endpoints == ()
