"""The bound on candidates being made at once, where it follows the replicas."""

from __future__ import annotations

import pytest
from gateway.releases_world import ACTIVE, DRAINING, P1, P2, READY, A, B, World
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.wire import SlotState
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.places import MOST_PLACES, UNSAID, Capacity, Places

CAPACITIES = st.builds(Capacity, st.none() | st.integers(1, 4096), st.none() | st.integers(1, 10**8))
TOKENS = st.floats(1, 1e5)
CACHE = 8_000_000


def places(configured: int | None = None) -> Places:
    return Places(configured, DoorMetrics.on(CollectorRegistry()).max_sequences)


def settled(tokens: int) -> Places:
    """Places of a gateway whose candidates all have that length."""
    made = places()
    for _ in range(100):
        made.ended(0, [tokens] * 64, [])
    return made


@pytest.mark.parametrize(
    ("sequences", "cache", "tokens", "expected"),
    [
        (256, 46_592, 100.0, 256),  # short answers: the batch is the bound
        (256, 46_592, 512.0, 91),  # long ones: the cache
        (256, 46_592, 1e9, 1),  # never none
        (256, None, 1e9, 256),
        (None, None, 100.0, UNSAID),
        (None, 46_592, 2000.0, 23),
    ],
)
def test_what_a_replica_holds(sequences: int | None, cache: int | None, tokens: float, expected: int) -> None:
    assert Capacity(sequences, cache).places(tokens) == expected


@given(CAPACITIES, TOKENS, TOKENS)
def test_longer_candidates_never_get_more_places(capacity: Capacity, one: float, other: float) -> None:
    assert 1 <= capacity.places(max(one, other)) <= capacity.places(min(one, other))


@given(st.lists(CAPACITIES, min_size=1, max_size=5), CAPACITIES)
def test_a_replica_more_never_means_fewer_places(replicas: list[Capacity], more: Capacity) -> None:
    made = places()
    made.replicas(replicas)
    before = made.now()
    made.replicas([*replicas, more])
    assert 1 <= before <= made.now() <= MOST_PLACES


def test_while_no_replica_is_there_what_the_last_ones_held_still_counts() -> None:
    made = places()
    made.replicas([Capacity(100), Capacity(50)])
    made.replicas([Capacity(50)])
    assert made.now() == 50
    made.replicas([])
    assert made.now() == 50


def test_a_setting_is_the_last_word() -> None:
    made = places(7)
    made.replicas([Capacity(1000)])
    made.ended(100, [5000], [])
    assert made.now() == 7


@pytest.mark.parametrize("tokens", [10, 2000])
def test_the_length_that_candidates_have_is_learned(tokens: int) -> None:
    made = settled(tokens)
    made.replicas([Capacity(None, 64_000), Capacity(4096, 64_000)])
    assert made.now() == pytest.approx(min(UNSAID, 64_000 / tokens) + min(4096, 64_000 / tokens), rel=0.05)


def test_a_prompt_counts_once_for_all_candidates_that_share_it() -> None:
    one, eight = places(), places()
    for made, n in ((one, 1), (eight, 8)):
        for _ in range(2000 // n):
            made.ended(800, [200] * n, [])
        made.replicas([Capacity(4096, 100_000)])
    assert one.now() == pytest.approx(100, rel=0.05) and eight.now() == pytest.approx(333, rel=0.05)


def test_what_an_overload_cuts_short_does_not_look_short() -> None:
    made = settled(1000)
    made.replicas([Capacity(4096, 100_000)])
    before = made.now()
    for _ in range(100):
        made.ended(50, [], [20] * 16)  # at the deadline
    assert made.now() == before
    for _ in range(100):
        made.ended(50, [], [3000] * 16)
    assert made.now() < before / 2


@given(st.lists(st.tuples(st.integers(0, 9000), st.lists(st.integers(1, 9000), max_size=64)), max_size=30))
def test_the_mean_stays_between_what_was_seen(jobs: list[tuple[int, list[int]]]) -> None:
    made = places()
    made.replicas([Capacity(MOST_PLACES, CACHE)])
    means = [512.0, *((prompt + sum(whole)) / len(whole) for prompt, whole in jobs if whole)]
    for prompt, whole in jobs:
        made.ended(prompt, whole, [])
    assert CACHE // max(means) - 1 <= made.now() <= min(MOST_PLACES, CACHE / min(means)) + 1


# ------------------------------------------------------------------------------------------------- of the replicas


@pytest.fixture
def seen() -> list[tuple[Capacity, ...]]:
    return []


@pytest.fixture
def world(seen: list[tuple[Capacity, ...]]) -> World:
    made = World(capacities=seen.append)
    made.slots.capacities = {P1: (256, 50_000), P2: (128, None)}
    return made


async def test_every_look_tells_what_the_policy_replicas_hold(world: World, seen: list[tuple[Capacity, ...]]) -> None:
    await world.poll()
    assert seen[-1] == (Capacity(256, 50_000), Capacity(128, None))


async def test_a_replica_that_is_down_holds_nothing(world: World, seen: list[tuple[Capacity, ...]]) -> None:
    await world.poll()
    del world.slots.states[P1]
    await world.poll()
    assert len(seen[-1]) == 2, "one silence is no death"
    await world.poll()
    assert seen[-1] == (Capacity(128, None),)


@pytest.mark.parametrize("state", [SlotState.STAGING, SlotState.REJECTED, SlotState.RETIRED])
async def test_nor_does_one_that_has_nothing_to_answer_with(
    world: World, seen: list[tuple[Capacity, ...]], state: SlotState
) -> None:
    world.slots.states[P1] = {A.policy: state}
    await world.poll()
    assert seen[-1] == (Capacity(128, None),)


async def test_two_versions_in_one_replica_count_once(world: World, seen: list[tuple[Capacity, ...]]) -> None:
    world.slots.states[P1] = {A.policy: DRAINING, B.policy: READY}
    world.slots.states[P2] = {A.policy: ACTIVE, B.policy: READY}
    await world.poll()
    assert len(seen[-1]) == 2
