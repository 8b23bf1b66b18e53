"""Which requests a canary gets: the same ones always, about its share, and none that it could not serve whole."""

from __future__ import annotations

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
from acemath_registry import NotFound

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
    await world.tracker.poll()
    world.channel.pointers = (beside(A, B, generation=2),)
    if state is not None:
        world.everywhere(B, state)
    await world.tracker.poll()
    return world


def state(world: World) -> CanaryState:
    view = world.tracker.canary()
    assert view is not None and (view.release, view.share) == (B.release, 1.0)
    assert bool(view.reason) == (view.state is not S.SERVING)
    return view.state


async def leased(world: World, key: str = "key") -> tuple[str, ReleaseRole]:
    async with world.tracker.lease(key) as target:
        return target.release, target.role


CURRENT, CANARY = (A.release, ReleaseRole.CURRENT), (B.release, ReleaseRole.CANARY)


async def test_it_is_leased_to_its_share_and_the_current_one_to_the_rest() -> None:
    world = await world_with()
    world.channel.pointers = (beside(A, B, 0.5, generation=3),)
    await world.tracker.poll()
    keys = [f"request-{number}" for number in range(40)]
    found = {key: await leased(world, key) for key in keys}
    assert found == {key: CANARY if in_share(B.release, 0.5, key) else CURRENT for key in keys}
    assert set(found.values()) == {CURRENT, CANARY}
    assert world.metric("canary_share") == 0.5 and world.metric("release_generation") == 3
    async with world.tracker.lease(next(key for key in keys if found[key] == CANARY)) as target:
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
    await world.tracker.poll()
    assert await leased(world) == CURRENT and state(world) is said
    assert world.metric("canary_fallbacks_total", state=said.value) == 1 and world.metric("canary_share") == 0
    assert world.tracker.readiness().ready
    world.slots.states[url] = known
    await world.tracker.poll()
    assert await leased(world) == CANARY


async def test_what_ends_is_given_to_nobody_from_the_moment_that_it_is_read() -> None:
    world = await world_with()
    async with world.tracker.lease("key") as held:
        world.channel.pointers = (replace(A, generation=3),)
        await world.tracker.poll()
        assert await leased(world) == CURRENT and world.tracker.canary() is None
        assert held.release == B.release and world.metric("leases", age="old") == 1
    assert world.metric("release_generation") == 3


async def test_its_promotion_makes_it_current_for_everybody() -> None:
    world = await world_with()
    world.channel.pointers = (replace(B, generation=3), replace(A, generation=2))
    await world.tracker.poll()
    assert await leased(world) == (B.release, ReleaseRole.CURRENT) and world.tracker.canary() is None


async def test_beside_a_release_that_is_not_served_here_it_waits() -> None:
    world = await world_with()
    world.channel.pointers = (beside(replace(C, generation=4), B),)
    await world.tracker.poll()
    assert await leased(world) == CURRENT and state(world) is S.CURRENT_NOT_SERVED
    world.everywhere(C, ACTIVE)
    await world.tracker.poll()
    assert await leased(world) == CANARY


async def test_one_that_cannot_be_read_changes_nothing_else() -> None:
    world = await world_with()
    world.channel.pointers = (replace(A, generation=3, canary=CanaryPointer(B.release, 1.0, None, "was edited")),)
    await world.tracker.poll()
    view = world.tracker.canary()
    assert view is not None and (view.state, view.reason, view.policy) == (S.UNREADABLE, "was edited", None)
    assert await leased(world) == CURRENT and world.metric("release_generation") == 3
    world.channel.pointers = (beside(A, B, generation=4),)
    world.encoders.error = NotFound("no tokenizer")
    await world.tracker.poll()
    assert await leased(world) == CURRENT and state(world) is S.UNREADABLE


async def test_an_old_view_gives_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await world_with()
    monkeypatch.setattr("acemath_gateway.canary.VIEW_SECONDS", -1.0)
    assert await leased(world) == CURRENT and state(world) is S.STALE
    assert world.metric("canary_fallbacks_total", state="stale") == 1


async def test_without_a_current_release_nobody_starts_with_the_canary() -> None:
    world = World()
    world.channel.pointers = (beside(C, A),)
    await world.tracker.poll()
    view = world.tracker.canary()
    assert world.release() is None and view is not None and view.state is S.CURRENT_NOT_SERVED
