"""After a restart of everything: what was served last comes back, and takes no place that the named version needs."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from registry.following.making_way_world import Bad, World, member

from acemath_core.wire import SlotState as S
from acemath_registry import ModelKind, Registry, ReleaseMember
from acemath_registry.following import SERVING, Desired, SwapStrategy, Usage


class Served:
    """All were restarted: no gateway routes, and the first version was served last."""

    def __init__(self, world: World, unknown: str | None) -> None:
        self.world, self.unknown = world, unknown

    async def holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        return self.unknown

    async def usage(self) -> Usage:
        served = {ModelKind.POLICY: Desired(member(1), "r-1", 1)}
        return Usage(self.unknown, self.world.now, viewed=self.world.now, served=served)


async def pass_rounds(world: World) -> None:
    """So many that nothing is left to be done."""
    for _ in range(40):
        await world.round()
        await world.idle()
        world.now += 1


@pytest.mark.parametrize("unknown", [None, "gateway g: its record is 90 s old"])
@pytest.mark.parametrize("strategy", list(SwapStrategy))
async def test_after_a_restart_of_all_what_was_served_last_takes_no_place_that_the_named_one_needs(
    registry: Registry, strategy: SwapStrategy, unknown: str | None
) -> None:
    world = World(registry, strategy)
    world.gateways = Served(world, unknown)  # type: ignore[assignment]
    world.start()
    world.promote(1)
    world.promote(2)
    await pass_rounds(world)
    assert world.state(2) is S.ACTIVE, "the gateways may have flipped to it, and not been able to say so"
    alone = strategy is SwapStrategy.RESOURCE_PRESERVING
    assert world.loaded == ({member(2)} if alone else {member(1), member(2)})
    await world.end()


@pytest.mark.parametrize("fault", [True, False], ids=["it fails here", "its other half was refused"])
@pytest.mark.parametrize("strategy", list(SwapStrategy))
async def test_after_a_restart_of_all_what_was_served_last_comes_back_where_the_named_one_will_not_serve(
    registry: Registry, strategy: SwapStrategy, fault: bool
) -> None:
    world = World(registry, strategy)
    world.gateways = Served(world, None)  # type: ignore[assignment]
    world.start()
    if fault:
        world.faults[member(2), "stage"] = Bad("canary")
    else:
        world.halves.add(2)
    world.promote(1)
    world.promote(2)
    await pass_rounds(world)
    served = world.find(1)
    assert served is not None and served.state in SERVING and member(1) in world.loaded
    await world.end()
