"""The bound on candidates being made at once, where it follows the replicas."""

from __future__ import annotations

import math
import time

import pytest
from gateway.releases_world import ACTIVE, DRAINING, P1, P2, READY, A, B, World
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.wire import MAX_CANDIDATES, SlotState
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.places import MOST_PLACES, UNSAID, Capacity, Lengths, Places

CAPACITIES = st.builds(Capacity, st.none() | st.integers(1, 4096), st.none() | st.integers(1, 10**8))
TOKENS = st.floats(1, 1e5)
CACHE = 8_000_000


def places(configured: int | None = None) -> Places:
    return Places(configured, DoorMetrics.on(CollectorRegistry()).max_sequences)


def settled(tokens: int) -> Places:
    """Places of a gateway whose candidates all have that length."""
    made = places()
    for _ in range(400):
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


@given(st.lists(CAPACITIES, min_size=1, max_size=5), TOKENS)
def test_the_bound_is_what_the_least_of_them_holds_for_each(replicas: list[Capacity], tokens: float) -> None:
    made = places()
    made.elsewhere([Lengths(tokens, 2.0**100)])
    made.replicas(replicas)
    least = min(replica.places(tokens) for replica in replicas)
    assert made.now() == min(MOST_PLACES, max(MAX_CANDIDATES, len(replicas) * least))


def test_while_no_replica_is_there_what_the_last_ones_held_still_counts() -> None:
    made = places()
    made.replicas([Capacity(200), Capacity(150)])
    assert made.now() == 300
    made.replicas([Capacity(150)])
    assert made.now() == 150
    made.replicas([])
    assert made.now() == 150


@given(CAPACITIES, TOKENS)
def test_the_largest_request_always_fits(capacity: Capacity, tokens: float) -> None:
    made = places()
    made.replicas([capacity])
    made.ended(0, [int(tokens)] * MAX_CANDIDATES, [])
    assert made.now() >= MAX_CANDIDATES


def test_a_setting_is_the_last_word() -> None:
    made = places(7)
    made.replicas([Capacity(1000)])
    made.ended(100, [5000], [])
    assert made.now() == 7


@pytest.mark.parametrize("tokens", [10, 200, 2000])
def test_the_length_that_candidates_have_is_learned(tokens: int) -> None:
    made = settled(tokens)
    made.replicas([Capacity(4096, 640_000)])
    assert made.now() == pytest.approx(min(4096, 640_000 / tokens), rel=0.05)


def test_a_prompt_counts_once_for_all_candidates_that_share_it() -> None:
    one, eight = places(), places()
    for made, n in ((one, 1), (eight, 8)):
        for _ in range(4000 // n):
            made.ended(800, [200] * n, [])
        made.replicas([Capacity(4096, 100_000)])
    assert one.now() == pytest.approx(100, rel=0.05) and eight.now() == pytest.approx(333, rel=0.05)


def test_a_gateway_that_makes_no_candidates_any_more_says_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, busy = settled(5000), settled(200)
    busy.replicas([Capacity(4096, 100_000)])
    busy.elsewhere([idle.own()])
    assert busy.now() == 64
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    busy.ended(0, [200] * 16, [])
    busy.elsewhere([idle.own()])
    assert busy.now() == pytest.approx(500, rel=0.2)
    monkeypatch.setattr(time, "monotonic", lambda: later + 1e7)
    busy.elsewhere([idle.own()])
    assert busy.now() >= 64


@pytest.mark.parametrize("odd", [Lengths(math.nan, 1), Lengths(1, 0), Lengths(math.inf, 1), Lengths(-1, 1)])
def test_what_is_no_length_is_known_for_it(odd: Lengths) -> None:
    assert not odd.sound() and Lengths().sound()


def test_one_odd_request_does_not_move_everybodys_places_far() -> None:
    made = settled(200)
    made.replicas([Capacity(4096, 100_000)])
    made.ended(0, [7000] * 64, [])
    assert made.now() > 200


def test_who_has_just_started_has_the_bound_of_the_others() -> None:
    warm, cold = settled(100), places()
    for made in (warm, cold):
        made.replicas([Capacity(4096, 100_000)])
    assert cold.now() < 200 < 900 < warm.now()
    warm.elsewhere([cold.own()])
    cold.elsewhere([warm.own()])
    assert abs(warm.now() - cold.now()) <= 1 and cold.now() > 800
    cold.elsewhere([])
    assert cold.now() < 200


def test_what_an_overload_cuts_short_does_not_look_short() -> None:
    made = settled(1000)
    made.replicas([Capacity(4096, 1_000_000)])
    before = made.now()
    for _ in range(100):
        made.ended(50, [], [20] * 16)  # at the deadline
        made.ended(50, [20] * 8, [900] * 8)  # the short ones had time to end
    assert made.now() == before
    for _ in range(300):
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
    await world.poll()
    world.slots.states[P1] = {A.policy: state}
    await world.poll()
    assert seen[-1] == (Capacity(128, None),)


async def test_only_the_version_that_new_jobs_use_counts(world: World, seen: list[tuple[Capacity, ...]]) -> None:
    world.slots.states[P1] = {A.policy: DRAINING, B.policy: READY}
    world.slots.states[P2] = {B.policy: READY}
    await world.poll()
    assert seen == []  # no release yet: one replica does not have it any more
    world.slots.states[P2] = {A.policy: ACTIVE, B.policy: READY}
    world.slots.states[P1] = {A.policy: ACTIVE, B.policy: READY}
    await world.poll()
    assert len(seen[-1]) == 2
    world.slots.states[P1] = {B.policy: READY}
    await world.poll()
    assert seen[-1] == (Capacity(128, None),)


async def test_a_replica_that_makes_room_gets_no_new_candidates(world: World, seen: list[tuple[Capacity, ...]]) -> None:
    await world.poll()
    world.slots.states[P1] = {A.policy: DRAINING}
    world.slots.gated.add(P1)
    await world.poll()
    assert seen[-1] == (Capacity(128, None),)
