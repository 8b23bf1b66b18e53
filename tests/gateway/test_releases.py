"""Which release a gateway routes by, as its channel and the replicas of policy and reward change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest
from gateway.releases_world import (
    ACTIVE,
    DRAINING,
    P1,
    P2,
    R1,
    R2,
    READY,
    REJECTED,
    STAGING,
    A,
    B,
    C,
    World,
)

from acemath_core.errors import ErrorCode, ServiceError, Unavailable
from acemath_core.wire import SlotState
from acemath_registry import NotFound
from doubles.servers import until


async def test_before_the_first_poll_nothing_is_leased() -> None:
    world = World()
    assert not world.tracker.readiness().ready
    with pytest.raises(Unavailable) as caught:
        async with world.lease("key"):
            pass
    assert caught.value.code is ErrorCode.NOT_READY


async def test_the_first_release_is_taken_when_every_replica_is_ready() -> None:
    world = World()
    world.slots.states[R2] = {A.reward: STAGING}
    await world.tracker.poll()
    assert world.release() is None
    assert "http://r2 has r@s1-aaaaaaaaaaaa in state staging" in world.tracker.readiness().reason
    world.slots.states[R2] = {A.reward: READY}
    await world.tracker.poll()
    target = world.tracker.current()
    assert target is not None
    assert (target.release, target.generation) == (A.release, 1)
    assert target.policy_endpoints == ("http://v1", "http://v2")
    assert target.reward_endpoints == (R1, R2)
    assert target.context_length == 1024
    assert world.tracker.readiness().ready
    assert world.encoders.loaded == [(A.policy, A.policy_manifest_sha256)]
    assert world.metric("model_info", role="policy", version=A.policy) == 1


@pytest.mark.parametrize("url", [P1, P2, R1, R2])
@pytest.mark.parametrize("state", [None, STAGING, REJECTED, DRAINING])
async def test_a_release_that_one_replica_lacks_changes_nothing(url: str, state: SlotState | None) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    version = B.policy if url in (P1, P2) else B.reward
    if state is None:
        del world.slots.states[url][version]
    else:
        world.slots.states[url][version] = state
    await world.tracker.poll()
    assert world.release() == A.release
    readiness = world.tracker.readiness()
    assert readiness.ready
    assert url in str(readiness.details["problem"])
    world.slots.states[url][version] = READY
    await world.tracker.poll()
    assert world.release() == B.release


async def test_a_release_that_drains_everywhere_is_never_flipped_to_although_it_serves() -> None:
    world = World()
    await world.tracker.poll()
    world.everywhere(B, DRAINING)  # it was given up for the release after it
    for pointers in ((B, A), (C, B)):
        world.channel.pointers = pointers
        await world.tracker.poll()
        assert world.release() == A.release
    world.everywhere(C, READY)
    await world.tracker.poll()
    assert world.release() == C.release


async def test_a_gateway_that_was_slower_than_the_channel_steps_forward_to_what_another_routes_by() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (C, B)
    world.everywhere(B, ACTIVE)
    await world.tracker.poll()
    assert world.release() == A.release, "nobody uses it, and it is no longer named"
    world.channel.others = (B, A)  # another gateway flipped to it, and the version before it is kept for this one
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None and (current.release, current.generation) == (B.release, 2)
    assert C.policy in str(world.tracker.readiness().details["problem"])
    world.channel.others = (replace(A, generation=9), A)
    await world.tracker.poll()
    assert world.release() == B.release, "never a step back, nor past the channel"


async def test_a_view_that_took_too_long_flips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    monkeypatch.setattr("acemath_gateway.releases._VIEW_SECONDS", -1.0)
    await world.tracker.poll()
    assert world.release() == A.release
    assert "too old by now" in str(world.tracker.readiness().details["problem"])
    monkeypatch.undo()
    await world.tracker.poll()
    assert world.release() == B.release


async def test_a_silent_replica_keeps_a_new_release_from_being_taken() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    del world.slots.states[R1]
    await world.tracker.poll()
    assert world.release() == A.release


@pytest.mark.parametrize("error", [NotFound("gone"), ValueError("bad tokenizer"), OSError("io")])
async def test_a_release_whose_tokenizer_cannot_be_read_is_not_taken(error: Exception) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    world.encoders.error = error
    await world.tracker.poll()
    assert world.release() == A.release
    assert str(error) in str(world.tracker.readiness().details["problem"])


async def test_a_release_whose_server_does_not_answer_to_us_is_not_taken() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    world.slots.lengths.clear()
    await world.tracker.poll()
    assert world.release() == A.release


async def test_a_job_keeps_its_release_over_a_flip() -> None:
    world = World()
    await world.tracker.poll()
    async with world.lease("key") as old:
        world.channel.pointers = (B, A)
        world.everywhere(B, READY)
        await world.tracker.poll()
        async with world.lease("key") as new:
            assert (old.release, new.release) == (A.release, B.release)
            assert (old.policy, old.reward) == (A.policy, A.reward)
            assert world.metric("leases", age="old") == world.metric("leases", age="current") == 1
    assert world.metric("leases", age="old") == 0
    assert world.metric("model_info", role="policy", version=A.policy) is None


async def test_going_back_is_a_new_generation_of_the_old_release() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (replace(A, generation=3), replace(B, generation=2))
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert (current.release, current.generation) == (A.release, 3)
    assert world.metric("release_generation") == 3


async def test_a_replica_that_is_down_leaves_the_target_and_comes_back() -> None:
    world = World()
    await world.tracker.poll()
    gone = world.slots.states.pop(P1)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v1", "http://v2")  # one missed answer is not yet an outage
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v2",)
    world.slots.states[P1] = gone
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v1", "http://v2")


async def test_without_any_policy_server_nothing_is_leased_and_without_reward_it_is_not_ready() -> None:
    world = World()
    await world.tracker.poll()
    del world.slots.states[R1], world.slots.states[R2]
    for _ in range(2):
        await world.tracker.poll()
    assert world.tracker.readiness().reason == "no reward service answers"
    async with world.lease("key") as target:
        assert target.reward_endpoints == ()
    del world.slots.states[P1], world.slots.states[P2]
    for _ in range(2):
        await world.tracker.poll()
    assert world.tracker.serving() is None
    with pytest.raises(Unavailable) as caught:
        async with world.lease("key"):
            pass
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE


async def test_the_current_release_is_used_while_a_replica_already_drains_it() -> None:
    world = World()
    await world.tracker.poll()
    world.slots.states[P1][A.policy] = DRAINING
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert len(current.policy_endpoints) == 2


async def test_an_unreadable_channel_changes_nothing() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.error = Unavailable("mount is gone")
    await world.tracker.poll()
    assert world.release() == A.release
    assert world.tracker.readiness().ready
    assert world.metric("release_polls_failed_total") == 1


async def test_a_bug_in_a_poll_does_not_end_the_tracker() -> None:
    world = World(poll_seconds=0.01)
    world.channel.error = cast(ServiceError, ZeroDivisionError())
    running = asyncio.create_task(world.tracker.run())
    await until(lambda: world.channel.reads > 2)
    assert world.release() is None
    world.channel.error = None
    await until(lambda: world.release() == A.release)
    running.cancel()
    await asyncio.wait({running})
