"""The model of `test_places` with a release that gets a share: nothing that a gateway may give out is ever stopped.

Services may act by what the channel said a while ago, and gateways give a share out by what they saw of the services.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any, cast

import pytest
from registry.following.test_places import (
    BAD,
    ENDED,
    LIVES,
    LIVING,
    OFFERED,
    SERVING,
    Gateway,
    S,
    Service,
    Slot,
    World,
    act,
    release,
)

from acemath_registry import ModelRef, Release, ReleaseMember
from acemath_registry.following import Places


@dataclass
class SharedSlot(Slot):
    shared: bool = False


class SharedService(Service):
    """The order of a round, with what `Versions` makes of a canary."""

    world: SharedWorld
    seen: tuple[int, Release, Release | None] | None = None

    def look(self) -> None:
        self.seen = self.world.generation, self.world.channel[-1], self.world.canary

    async def round(self) -> None:
        if self.seen is None:
            self.look()
        assert self.seen is not None
        generation, named, canary = self.seen
        wanted, beside = self.named(named), self.named(canary) if canary else None
        kept = [s for s in self.slots if s.state is S.REJECTED and s.generation == generation]
        self.slots = [s for s in self.slots if s.state not in ENDED] + [s for s in kept if s.member in (wanted, beside)]
        self.note(generation, named, canary)
        for slot in self.slots:
            if slot.member not in (wanted, beside) and slot.state is S.STAGING and not slot.proved:
                slot.move(S.RETIRED)
        self.switch_beside(self.find(wanted), self.find(beside) if beside else None)
        await self.stop_others(wanted, beside)
        living = [slot for slot in self.slots if slot.state not in ENDED]
        if self.find(wanted) is None and len(living) >= LIVING:
            gone = await self.places.make_room(ModelRef(wanted.name, wanted.version), living, lambda slot: True)
            if gone is not None:
                gone.move(S.RETIRED)
            return
        self.places.waits_for(None)
        if self.find(wanted) is None:
            self.slots.append(SharedSlot(wanted, generation, {named.id}, self.world.now, self.world))
        elif canary is not None and beside is not None and self.find(beside) is None:
            active = self.states().get(wanted) is S.ACTIVE
            if active and len(living) < LIVING:
                self.slots.append(SharedSlot(beside, generation, {canary.id}, self.world.now, self.world))

    def note(self, generation: int, named: Release, canary: Release | None) -> None:
        for one in (named, canary):
            slot = self.find(self.named(one)) if one else None
            if one is not None and slot is not None and slot.state is not S.REJECTED:
                slot.generation = generation
                slot.releases.add(one.id)
                cast(SharedSlot, slot).shared |= slot.member != self.named(named)

    def switch_beside(self, wanted: Slot | None, beside: Slot | None) -> None:
        if wanted is None or wanted.state not in SERVING:
            return
        wanted.move(S.ACTIVE)
        for slot in self.slots:
            if slot is beside and slot is not wanted and slot.state in SERVING:
                slot.move(S.READY)
            elif slot is not wanted and slot is not beside and slot.state in OFFERED:
                slot.move(S.DRAINING)

    async def stop_others(self, wanted: ReleaseMember, beside: ReleaseMember | None) -> None:
        if S.ACTIVE not in self.states().values():
            return
        for slot in self.slots:
            if slot.member in (wanted, beside) or slot.state in ENDED or slot.state is S.ACTIVE:
                continue
            held = await self.leases.holder(slot.member, slot.generation, slot.releases)
            if held is None and cast(SharedSlot, slot).shared:
                held = await cast("Places[Slot]", self.places).lingers(slot)
            if held is None:
                slot.move(S.RETIRED)


class SharedGateway(Gateway):
    """The rules of `acemath_gateway.canary`."""

    world: SharedWorld
    seen: Any = None
    offer: tuple[float, Release, Release] | None = None

    def look(self) -> None:
        super().look()
        named, canary = self.world.channel[-1], self.world.canary
        if self.offer is not None and (canary, named) != self.offer[1:]:
            self.offer = None  # at once
        self.seen = self.world.now, canary, named, self.view[2]

    def flip(self) -> None:
        super().flip()
        if self.seen is None:
            return
        (viewed, canary, named, states), self.seen, self.offer = self.seen, None, None
        beside = canary is not None and self.target is not None and self.target[1] == named
        if beside and self.can(canary, states, OFFERED):
            self.offer = viewed, canary, named

    def restart(self) -> None:
        super().restart()
        self.offer = self.seen = None

    def offered(self) -> Release | None:
        return self.offer[1] if self.offer is not None and self.world.now - self.offer[0] <= 10 else None

    def uses(self) -> set[Release]:
        return super().uses() | ({offered} if (offered := self.offered()) is not None else set())


class SharedWorld(World):
    """Whose channel may name a canary."""

    canary: Release | None = None
    tried: Release | None = None

    def __init__(self, skews: list[float]) -> None:
        super().__init__(skews)
        self.services = [SharedService(self, "pol"), SharedService(self, "rew")]
        self.gateways = [SharedGateway(self, f"g{i}", skew) for i, skew in enumerate(skews)]

    def promote(self, named: Release) -> None:
        if not self.channel or self.channel[-1] != named:
            self.canary = None
        super().promote(named)

    def begin(self, canary: Release) -> None:
        if canary != self.channel[-1] and self.canary is None:
            self.known[canary.id] = canary
            self.canary = self.tried = canary
            self.generation += 1

    def stop(self) -> None:
        if self.canary is not None:
            self.canary, self.generation = None, self.generation + 1

    async def rounds(self) -> None:
        for service in self.services:
            service.look()
        await super().rounds()


def change(world: SharedWorld, chance: random.Random) -> None:
    """Between any two steps; what had a share often gets one again at once."""
    numbers = [0, 1, 2, 4, BAD]
    if chance.random() < 0.005:
        world.promote(release(chance.choice(numbers), chance.choice(numbers)))
    if chance.random() < 0.003:
        world.rollback()
    if chance.random() < 0.05:
        again = world.tried is not None and chance.random() < 0.8
        world.begin(world.tried if again and world.tried else release(chance.choice(numbers), chance.choice(numbers)))
    if chance.random() < 0.03:
        world.stop()
    if chance.random() < 0.003 and world.canary is not None:
        world.promote(world.canary)


async def live(world: SharedWorld, chance: random.Random, seconds: int) -> int:
    """Seconds in which anything may happen, in any order within a second; how often a share was given out."""
    given = 0
    for _ in range(seconds):
        parts: list[Any] = [*world.services, *world.gateways, *world.gateways]
        for part in chance.sample(parts, len(parts)):
            change(world, chance)
            if isinstance(part, SharedService):
                await serve(part, chance)
            else:
                act(part, chance)
                if (offered := part.offered()) is not None and chance.random() < 0.2:
                    part.leases[offered.id] += 1
                    given += 1
            world.check()
        world.tick(chance.choice((1, 1, 1, 1, 4)))
    return given


async def serve(service: SharedService, chance: random.Random) -> None:
    if chance.random() < 0.7:
        service.look()
    if chance.random() < 0.9:
        await service.round()
    if chance.random() < 0.6:
        service.finish()
    if chance.random() < 0.01:
        service.crash()


@pytest.mark.parametrize("seed", [0, 10, 11])
def test_what_may_be_given_out_is_never_stopped_and_the_next_good_release_goes_in(seed: int) -> None:
    async def play(chance: random.Random) -> int:
        world = SharedWorld([chance.choice((-5.0, 0.0, 5.0)) for _ in range(chance.randint(1, 3))])
        await world.calm(10)
        given = await live(world, chance, 60)
        last, tried = release(9, 9), release(8, 9)
        world.promote(last)
        await world.calm(150)
        assert {gateway.target for gateway in world.gateways} == {(world.generation, last)}
        world.begin(tried)
        await world.calm(60)
        assert {cast(SharedGateway, gateway).offered() for gateway in world.gateways} == {tried}
        world.stop()
        await world.calm(60)
        assert [list(service.states().values()) for service in world.services] == [[S.ACTIVE]] * 2
        return given

    assert sum(asyncio.run(play(random.Random(1000 * seed + life))) for life in range(LIVES)) > 0
