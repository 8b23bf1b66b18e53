"""A version of which only this half was good makes room for the next release, and nothing that a gateway uses goes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from reward.models import ArithmeticModel
from reward.world import SETTLE, S, World

from acemath_registry import PublishMetadata


class Swap:
    """R1 serves; R2 was loaded, and no gateway used it since its policy version was bad; R3 is named."""

    def __init__(self, world: World) -> None:
        self.world, self.ids = world, list[str]()
        self.refs = [str(world.publish(seed)) for seed in (1, 2, 3)]

    async def begin(self) -> None:
        for seed in (1, 2):
            self.ids.append(self.world.promote(self.world.publish(seed)))
            await self.world.until(**{f"v{seed}": S.ACTIVE})
        self.ids.append(self.world.promote(self.world.publish(3)))

    def routed(self, generation: int, name: str = "g1", **more: Any) -> None:
        record = {"generation": generation, "release": self.ids[generation - 1], "leases": {}, "at": time.time()}
        self.world.registry.write_status("gateway", name, record | more)

    async def beats(self, *states: S | None, seconds: float = 60, **gateways: int) -> None:
        """Heartbeats of gateways (name → generation), and rounds, until the versions are in these states."""
        await self.until(lambda: self.states() == states, seconds, **gateways)

    async def until(self, condition: Callable[[], bool], seconds: float = 60, **gateways: int) -> None:
        """The same until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.world.reconciler.slots(), self.waiting())
            await self.round(**gateways)

    async def round(self, **gateways: int) -> None:
        for name, generation in gateways.items():
            self.routed(generation, name)
        await self.world.reconciler.round()
        await asyncio.sleep(0.01)

    async def rounds(self, seconds: float, **gateways: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.round(**gateways)

    def states(self) -> tuple[S | None, ...]:
        found = self.world.states()
        return tuple(found.get(ref) for ref in self.refs)

    def waiting(self) -> str:
        return str(self.world.reconciler.readiness().details["waiting"])

    def figure(self, name: str, **labels: str) -> float | None:
        return self.world.figures.get_sample_value(f"acemath_reward_{name}", labels)


@pytest.fixture
async def swap(world: World) -> Swap:
    made = Swap(world)
    await made.begin()
    return made


async def test_the_next_good_release_goes_in_after_one_whose_other_half_was_bad(
    swap: Swap, caplog: pytest.LogCaptureFixture
) -> None:
    world, (first, second, third) = swap.world, swap.refs
    await swap.beats(S.ACTIVE, S.DRAINING, None, g1=1)
    assert world.reconciler.readiness().ready and await world.score() == await world.score(first) == first
    assert swap.figure("swap_waiting") == 1
    shown = [s.labels["version"] for f in world.figures.collect() for s in f.samples if "model_info" in s.name]
    assert shown == [first]
    await world.reconciler.round()
    assert swap.waiting() == (
        f"{third} waits for a place: {first} active (gateway g1: it still routes by generation 1), "
        f"{second} draining (no gateway uses it; until their records are newer than its draining)"
    )
    assert world.registry.read_status("reward", "0")["waiting"] == swap.waiting()
    await swap.beats(S.DRAINING, S.RETIRED, S.ACTIVE, g1=1)
    assert len(world.loaded) == 3 and swap.waiting() == "None" and swap.figure("swap_waiting") == 0
    assert await world.score(first) == first
    await swap.beats(S.RETIRED, S.RETIRED, S.ACTIVE, g1=3)
    assert 1 <= sum("waits for a place" in record.message for record in caplog.records) <= 3


@pytest.mark.parametrize("record", ["missing", "old", "damaged", "nameless", "ahead"])
async def test_what_is_not_known_of_a_gateway_moves_nothing(swap: Swap, record: str) -> None:
    await swap.beats(S.ACTIVE, S.DRAINING, None, g1=1)
    path = swap.world.registry.root / "status" / "gateway" / "g1.json"
    {
        "missing": path.unlink,
        "old": lambda: swap.routed(1, at=time.time() - 100),
        "damaged": lambda: path.write_text("{"),
        "nameless": lambda: swap.routed(1, release=None),
        "ahead": lambda: swap.routed(1, at=time.time() + 60),
    }[record]()
    await swap.rounds(3 * SETTLE)
    assert swap.states() == (S.ACTIVE, S.DRAINING, None) and swap.world.reconciler.readiness().ready
    await swap.beats(S.DRAINING, S.RETIRED, S.ACTIVE, g1=1)


async def test_a_call_on_the_version_that_is_given_up_is_waited_for(swap: Swap) -> None:
    with swap.world.reconciler.choose(swap.refs[1]).in_use():
        await swap.until(lambda: "requests are running" in swap.waiting(), g1=1)
        await swap.rounds(3 * SETTLE, g1=1)
        assert swap.states() == (S.ACTIVE, S.DRAINING, None)
    await swap.beats(S.DRAINING, S.RETIRED, S.ACTIVE, g1=1)


async def test_a_gateway_that_flipped_after_all_keeps_its_version_and_the_other_goes(swap: Swap) -> None:
    await swap.beats(S.ACTIVE, S.DRAINING, None, g1=1)
    await swap.beats(S.RETIRED, S.DRAINING, S.ACTIVE, g1=2)


async def test_of_several_gateways_one_flipped_and_both_versions_stay_until_the_others_follow(swap: Swap) -> None:
    await swap.rounds(4 * SETTLE, g1=1, g2=2)
    assert swap.states() == (S.DRAINING, S.ACTIVE, None)
    await swap.beats(S.RETIRED, S.DRAINING, S.ACTIVE, g1=2, g2=2)


@pytest.mark.parametrize("back_to", [1, 2])
async def test_a_rollback_while_it_waits_takes_the_named_one_at_once(swap: Swap, back_to: int) -> None:
    await swap.beats(S.ACTIVE, S.DRAINING, None, g1=1)
    registry = swap.world.registry
    registry.promote("default", swap.ids[back_to - 1], expected_generation=None, by="test")
    expected = (S.ACTIVE, S.DRAINING, None) if back_to == 1 else (S.DRAINING, S.ACTIVE, None)
    await swap.round(g1=1)
    await swap.rounds(2 * SETTLE, g1=1)
    assert swap.states() == expected and len(swap.world.loaded) == 2 and swap.figure("swap_waiting") == 0


async def test_a_release_that_this_service_never_saw_named_holds_its_version_too(swap: Swap) -> None:
    world, registry = swap.world, swap.world.registry
    metadata = PublishMetadata(step=7, licence="Apache-2.0")
    (source,) = [*world.directory.glob("policy-of-*")][:1]
    policy = registry.publish(source, name="another", kind="policy", metadata=metadata)
    other = registry.create_release(policy, world.publish(2))
    assert other.id not in swap.ids
    until = time.monotonic() + 4 * SETTLE
    while time.monotonic() < until:
        swap.routed(1, release=other.id)
        await swap.round()
    assert swap.states()[1] in (S.ACTIVE, S.DRAINING), "whatever the generation says"
    assert world.reconciler.choose(swap.refs[1]).served is not None


@asynccontextmanager
async def restarted(swap: Swap) -> AsyncIterator[World]:
    """The service after a kill; its gateways' records are as they were."""
    await swap.beats(S.ACTIVE, S.DRAINING, None, g1=1)
    again = World(swap.world.registry, swap.world.directory)
    try:
        yield again
    finally:
        again.loading.set()
        await asyncio.to_thread(again.batcher.close)
        await again.reconciler.close()
        again.service.close()


@contextmanager
def held(again: World, version: str) -> Iterator[None]:
    """A version whose load does not end before the block does."""
    gate = threading.Event()

    def made(path: Path) -> ArithmeticModel:
        assert version.partition("@")[2] not in str(path) or gate.wait(60)
        return ArithmeticModel()

    again.make = made
    try:
        yield
    finally:
        gate.set()


async def until(swap: Swap, again: World, states: tuple[S | None, ...], **gateways: int) -> None:
    deadline = time.monotonic() + 60
    while tuple(again.states().get(ref) for ref in swap.refs) != states:
        assert time.monotonic() < deadline, again.states()
        for name, generation in gateways.items():
            swap.routed(generation, name)
        await again.reconciler.round()
        await asyncio.sleep(0.01)


async def test_a_restarted_service_has_what_gateways_route_by_before_what_is_named_is_ready(swap: Swap) -> None:
    first, _, third = swap.refs
    async with restarted(swap) as again:
        with held(again, third):
            await until(swap, again, (S.ACTIVE, None, S.STAGING), g1=1)
            assert again.reconciler.readiness().ready and await again.score() == await again.score(first) == first
        await until(swap, again, (S.DRAINING, None, S.ACTIVE), g1=1)
        assert await again.score() == third and await again.score(first) == first
        await until(swap, again, (S.RETIRED, None, S.ACTIVE), g1=3)


async def test_what_gateways_route_by_comes_back_also_when_what_is_named_is_ready_before_it(swap: Swap) -> None:
    first, _, third = swap.refs
    async with restarted(swap) as again:
        with held(again, first):
            await until(swap, again, (S.STAGING, None, S.ACTIVE), g1=1)
            for _ in range(20):
                await again.reconciler.round()
            assert again.states()[first] is S.STAGING, "the gateways still wait for it: the other half may be bad"
        await until(swap, again, (S.DRAINING, None, S.ACTIVE), g1=1)
        assert await again.score() == third and await again.score(first) == first
        await until(swap, again, (S.RETIRED, None, S.ACTIVE), g1=3)


async def test_what_no_gateway_routes_by_any_more_is_not_brought_back_to_the_end(swap: Swap) -> None:
    first = swap.refs[0]
    async with restarted(swap) as again:
        with held(again, first):
            await until(swap, again, (S.STAGING, None, S.ACTIVE), g1=1)
            await until(swap, again, (S.RETIRED, None, S.ACTIVE), g1=3)


async def test_a_restarted_service_serves_while_what_is_named_is_bad(swap: Swap) -> None:
    async with restarted(swap) as again:
        weights = swap.world.registry.path(swap.world.versions[3]) / "model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        await until(swap, again, (S.ACTIVE, None, S.REJECTED), g1=1)
        for _ in range(20):
            await again.reconciler.round()
        assert again.states()[swap.refs[0]] is S.ACTIVE and await again.score() == swap.refs[0]
        good = str(swap.world.publish(4))
        swap.ids.append(swap.world.promote(swap.world.publish(4)))
        await again.rounds(lambda: again.states().get(good) is S.ACTIVE)
        assert again.states()[swap.refs[0]] is S.DRAINING


@pytest.mark.parametrize("record", ["missing", "old", "nameless", "of what is named"])
async def test_a_restarted_service_goes_straight_to_what_is_named_where_nothing_else_is_known(
    swap: Swap, record: str
) -> None:
    async with restarted(swap) as again:
        {
            "missing": lambda: swap.world.registry.remove_status("gateway", "g1"),
            "old": lambda: swap.routed(1, at=time.time() - 100),
            "nameless": lambda: swap.routed(1, release=None),
            "of what is named": lambda: swap.routed(3),
        }[record]()
        await until(swap, again, (None, None, S.ACTIVE))
        assert len(again.loaded) == 1
