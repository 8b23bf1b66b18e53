"""Which requests a canary gets: the same ones always, about its share, and none that it could not serve whole."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

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
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.wire import SlotState
from acemath_gateway.canary import CanaryState, in_share
from acemath_gateway.pointer import CanaryPointer, Pointer
from acemath_gateway.ports import ReleaseRole
from acemath_gateway.release_figures import CountedAs
from acemath_prompts import TemplateError
from acemath_registry import NotFound
from doubles.servers import until

S = CanaryState
SHARES = st.floats(min_value=0.001, max_value=1.0)


@given(key=st.text(max_size=40), one=SHARES, other=SHARES, release=st.sampled_from([A.release, B.release]))
def test_a_larger_share_has_the_same_requests_and_more(key: str, one: float, other: float, release: str) -> None:
    small, large = sorted((one, other))
    assert in_share(release, large, key) or not in_share(release, small, key)
    assert in_share(release, 1.0, key)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_about_its_share_of_the_requests(share: float) -> None:
    """Within five standard deviations of the binomial, for keys that look like ours; the same keys every time."""
    count = 4000
    keys = [f"req_{number:032x}" for number in range(count)]
    mine = {key for key in keys if in_share(B.release, share, key)}
    assert abs(len(mine) - share * count) < 5 * math.sqrt(count * share * (1 - share))
    also = {key for key in keys if in_share(C.release, share, key)}
    assert abs(len(mine & also) - share**2 * count) < 5 * math.sqrt(count * share**2), "another release, other requests"


def test_the_share_is_what_it_always_was() -> None:
    """All gateways must agree, also while they are updated: these values never change."""
    keys = [f"request-{number}" for number in range(12)]
    assert "".join("x" if in_share("r-aaaaaaaaaaaa", 0.5, key) else "." for key in keys) == ".x..x.x....."


def beside(pointer: Pointer, canary: Pointer, share: float = 1.0, generation: int | None = None) -> Pointer:
    return replace(
        pointer,
        generation=generation or pointer.generation,
        canary=CanaryPointer(canary.release, share, replace(canary, generation=pointer.generation)),
    )


async def world_with(state: SlotState | None = READY, **options: object) -> World:
    """A is current; B has every request, as far as it can be served."""
    world = World(**options)
    await world.poll()
    world.channel.pointers = (beside(A, B, generation=2),)
    if state is not None:
        world.everywhere(B, state)
    await world.poll()
    return world


def state(world: World) -> CanaryState:
    view = world.tracker.canary()
    assert view is not None and (view.release, view.share) == (B.release, 1.0)
    assert bool(view.reason) == (view.state is not S.SERVING)
    return view.state


async def leased(world: World, key: str = "key") -> tuple[str, ReleaseRole]:
    async with world.lease(key) as target:
        return target.release, target.role


CURRENT, CANARY = (A.release, ReleaseRole.CURRENT), (B.release, ReleaseRole.CANARY)


async def test_it_is_leased_to_its_share_and_the_current_one_to_the_rest() -> None:
    world = await world_with()
    world.channel.pointers = (beside(A, B, 0.5, generation=3),)
    await world.poll()
    keys = [f"request-{number}" for number in range(40)]
    found = {key: await leased(world, key) for key in keys}
    assert found == {key: CANARY if in_share(B.release, 0.5, key) else CURRENT for key in keys}
    assert set(found.values()) == {CURRENT, CANARY}
    assert world.metric("canary_share") == 0.5 and world.metric("release_generation") == 3
    async with world.lease(next(key for key in keys if found[key] == CANARY)) as target:
        assert (target.policy, target.reward, target.generation) == (B.policy, B.reward, 3)
        assert world.metric("leases", age="canary") == 1 and world.metric("leases", age="old") == 0
    assert world.release() == A.release


@pytest.mark.parametrize("url", [P1, P2, R1, R2])
@pytest.mark.parametrize(
    ("slot", "said"),
    [(None, S.NOT_LOADED), (STAGING, S.COMING), (REJECTED, S.REJECTED), (DRAINING, S.LEAVING), ("away", S.NO_ANSWER)],
)
async def test_where_one_replica_lacks_it_the_current_release_answers(
    url: str, slot: SlotState | str | None, said: CanaryState
) -> None:
    world = await world_with()
    version = B.policy if url in (P1, P2) else B.reward
    assert await leased(world) == CANARY and state(world) is S.SERVING
    known = dict(world.slots.states[url])
    if slot == "away":
        del world.slots.states[url]
    elif isinstance(slot, SlotState):
        world.slots.states[url][version] = slot
    else:
        del world.slots.states[url][version]
    await world.poll()
    assert await leased(world) == CURRENT and state(world) is said
    assert world.metric("canary_fallbacks_total", state=said.value) == 1 and world.metric("canary_share") == 0
    assert world.tracker.readiness().ready
    world.slots.states[url] = known
    await world.poll()
    assert await leased(world) == CANARY


async def test_what_ends_is_given_to_nobody_from_the_moment_that_it_is_read() -> None:
    world = await world_with()
    async with world.lease("key") as held:
        world.channel.pointers = (replace(A, generation=3),)
        await world.poll()
        assert await leased(world) == CURRENT and world.tracker.canary() is None
        assert held.release == B.release and world.metric("leases", age="old") == 1
    assert world.metric("release_generation") == 3


async def test_its_promotion_makes_it_current_for_everybody() -> None:
    world = await world_with()
    world.channel.pointers = (replace(B, generation=3), replace(A, generation=2))
    await world.poll()
    assert await leased(world) == (B.release, ReleaseRole.CURRENT) and world.tracker.canary() is None


async def test_beside_a_release_that_is_not_served_here_it_waits() -> None:
    world = await world_with()
    world.channel.pointers = (beside(replace(C, generation=4), B),)
    await world.poll()
    assert await leased(world) == CURRENT and state(world) is S.CURRENT_NOT_SERVED
    world.everywhere(C, ACTIVE)
    await world.poll()
    assert await leased(world) == CANARY


async def test_one_that_cannot_be_read_changes_nothing_else() -> None:
    world = await world_with()
    world.channel.pointers = (replace(A, generation=3, canary=CanaryPointer(B.release, 1.0, None, "was edited")),)
    await world.poll()
    view = world.tracker.canary()
    assert view is not None and (view.state, view.reason, view.policy) == (S.UNREADABLE, "was edited", None)
    assert await leased(world) == CURRENT and world.metric("release_generation") == 3


@pytest.mark.parametrize(
    "error",
    [NotFound("no tokenizer"), TemplateError("no template"), KeyError("special"), Exception("of `tokenizers`")],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_is_wrong_with_its_tokenizer_is_a_reason_and_holds_up_nothing(error: Exception) -> None:
    world = World()
    await world.poll()
    world.channel.pointers = (beside(A, B, generation=2),)
    world.everywhere(B, READY)
    world.encoders.error = error
    await world.poll()
    await world.poll()
    assert await leased(world) == CURRENT and state(world) is S.UNREADABLE
    readiness = world.tracker.readiness()
    assert readiness.ready and readiness.details["generation"] == 2 and readiness.details["problem"] == ""
    assert "canary" in readiness.details
    assert len(world.encoders.loaded) == 2, "it is not read again at every look"


async def test_a_store_that_is_silent_about_it_holds_up_nothing() -> None:
    world = World()
    await world.poll()
    world.encoders.silent.add(B.policy)
    world.channel.pointers = (beside(A, B, generation=2),)
    world.everywhere(B, READY)
    for _ in range(3):
        await asyncio.wait_for(world.tracker.poll(), 20)
        await asyncio.sleep(0)
    assert await leased(world) == CURRENT and state(world) is S.READING
    assert [version for version, _ in world.encoders.loaded].count(B.policy) == 1, "one read at a time"
    del world.slots.states[R2]
    await asyncio.wait_for(world.tracker.poll(), 20)
    await asyncio.wait_for(world.tracker.poll(), 20)
    assert "http://r2" in str(world.tracker.readiness().details["reward_replicas"])
    assert world.metric("release_generation") == 2
    world.slots.states[R2] = {C.reward: READY}
    world.everywhere(C, READY)
    world.channel.pointers = (replace(C, generation=3),)
    await asyncio.wait_for(world.poll(), 20)
    assert await leased(world) == (C.release, ReleaseRole.CURRENT) and world.tracker.canary() is None
    await until(lambda: not preparing())


async def test_what_it_takes_too_long_to_read_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acemath_gateway.canary.PREPARE_SECONDS", 0.01)
    world = World()
    await world.poll()
    world.encoders.silent.add(B.policy)
    world.channel.pointers = (beside(A, B, generation=2),)
    world.everywhere(B, READY)
    await world.poll()
    assert state(world) is S.UNREADABLE and not preparing()


async def test_the_read_ends_with_the_gateway() -> None:
    world = World()
    world.encoders.silent.add(B.policy)
    world.channel.pointers = (beside(A, B, generation=2),)
    world.everywhere(B, READY)
    running = asyncio.create_task(world.tracker.run())
    await until(lambda: bool(preparing()))
    running.cancel()
    await asyncio.wait({running})
    assert not preparing()


def preparing() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "prepare the canary"]


async def test_a_server_that_does_not_say_what_it_takes_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acemath_gateway.canary._AGAIN_SECONDS", 0.0)
    world = World()
    await world.poll()
    world.channel.pointers = (beside(A, B, generation=2),)
    world.everywhere(B, READY)
    lengths = dict(world.slots.lengths)
    world.slots.lengths.clear()
    await world.poll()
    view = world.tracker.canary()
    assert view is not None and (view.state, "cannot be reached" in view.reason) == (S.NO_ANSWER, True)
    assert await leased(world) == CURRENT
    world.slots.lengths |= lengths
    await world.poll()
    await asyncio.sleep(0)
    await world.poll()
    assert await leased(world) == CANARY


async def test_a_job_counts_as_what_its_release_is_when_it_ends() -> None:
    world, counted = await world_with(), list[CountedAs]()
    current = world.tracker.current()
    assert current is not None
    async with world.lease("key") as shared:
        for pointers in (
            (beside(A, B, 0.5, generation=3),),  # another share of the same
            (replace(A, generation=4),),
            (beside(A, C, generation=5),),
            (replace(B, generation=6),),
        ):
            world.channel.pointers = pointers
            await world.poll()
            counted += [world.tracker.counted_as(shared), world.tracker.counted_as(current)]
    canary, now, old = CountedAs.CANARY, CountedAs.CURRENT, CountedAs.OLD
    assert counted == [canary, now, old, now, old, now, old, old]


async def test_a_canarys_job_counts_as_its_own_when_its_replica_died_under_it() -> None:
    world = await world_with()
    async with world.lease("key") as shared:
        del world.slots.states[P1]
        await world.poll()
        assert state(world) is S.NO_ANSWER and world.tracker.counted_as(shared) is CountedAs.CANARY


async def test_an_old_view_gives_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await world_with()
    monkeypatch.setattr("acemath_gateway.canary.VIEW_SECONDS", -1.0)
    assert await leased(world) == CURRENT and state(world) is S.STALE
    assert world.metric("canary_fallbacks_total", state="stale") == 1


async def test_without_a_current_release_nobody_starts_with_the_canary() -> None:
    world = World()
    world.channel.pointers = (beside(C, A),)
    await world.poll()
    view = world.tracker.canary()
    assert world.release() is None and view is not None and view.state is S.CURRENT_NOT_SERVED
