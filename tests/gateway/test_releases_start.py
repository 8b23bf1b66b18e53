"""A gateway that starts takes the newest release that its replicas serve, or an older one, or waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gateway.releases_world import (
    DRAINING,
    P1,
    P2,
    R2,
    READY,
    REJECTED,
    STAGING,
    A,
    B,
    C,
    World,
)

from acemath_core.wire import Slot, SlotState
from acemath_gateway.replicas import ReplicaWatch
from doubles.ports import ScriptedSlots


async def test_a_starting_gateway_gives_up_waiting_for_a_dead_replica() -> None:
    world = World(start_grace_seconds=0.0)
    del world.slots.states[P1]
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v2",)


async def test_a_starting_gateway_takes_the_release_before_a_bad_one() -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers = (B, replace(A, generation=1))
    world.everywhere(B, REJECTED)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert (current.release, current.generation) == (A.release, 1)
    world.everywhere(B, READY)
    await world.tracker.poll()
    assert world.release() == B.release


@pytest.mark.parametrize("newest", [STAGING, None])
async def test_a_starting_gateway_takes_a_draining_release_only_where_the_newest_took_its_place(
    newest: SlotState | None,
) -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers = (B, A)
    for url in (P1, P2):
        world.slots.states[url] = {A.policy: DRAINING} | ({B.policy: newest} if newest else {})
    await world.tracker.poll()
    assert world.release() == (A.release if newest else None), "what is given up may be stopped at any moment"


async def test_a_starting_gateway_takes_what_another_one_routes_by_when_the_last_two_are_not_there() -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers, world.channel.others = (C, B), (A,)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None and (current.release, current.generation) == (A.release, 1)


async def test_a_gateway_that_was_restarted_goes_on_with_what_it_routed_by_while_the_newest_comes() -> None:
    world = World()
    world.channel.pointers, world.channel.others = (B, A), (A,)
    world.everywhere(B, STAGING)
    await world.tracker.look_back()
    await world.tracker.poll()
    assert world.release() == A.release, "at once: nobody has been given anything newer"
    world.everywhere(B, READY)
    await world.tracker.poll()
    assert world.release() == B.release


async def test_a_gateway_that_was_restarted_waits_for_what_it_had_flipped_to() -> None:
    world = World()
    world.channel.pointers, world.channel.others = (B, A), (B, A)
    world.everywhere(B, STAGING)
    await world.tracker.look_back()
    await world.tracker.poll()
    assert world.release() is None, "its callers had answers of the newest already"


@pytest.mark.parametrize("silent", [P1, R2])
async def test_a_gateway_that_was_restarted_waits_for_replicas_that_do_not_answer(silent: str) -> None:
    world = World()
    world.channel.pointers, world.channel.others = (B, A), (A,)
    world.everywhere(B, STAGING)
    del world.slots.states[silent]
    await world.tracker.look_back()
    await world.tracker.poll()
    assert world.release() is None


async def test_a_version_that_is_brought_up_again_counts_and_not_what_it_was_before() -> None:
    before, now = (Slot(version=A.policy, state=state, since=0.0) for state in (SlotState.RETIRED, READY))

    class Twice(ScriptedSlots):
        async def slots(self, url: str) -> tuple[Slot, ...]:
            return before, now

    watch = ReplicaWatch(Twice(), [P1])
    await watch.refresh()
    assert watch.slot(P1, A.policy) == now


async def test_a_starting_gateway_does_not_start_on_nothing() -> None:
    world = World(start_grace_seconds=0.0)
    world.slots.states.clear()
    await world.tracker.poll()
    assert world.release() is None
    assert not world.tracker.readiness().ready
