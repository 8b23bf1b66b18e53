"""A model of two services, their gateways and their clocks: no step stops what a gateway uses, and good releases go in.

The rule (`Places`), what it reads (`StatusLeases`) and the order of a round are the services'; gateways, vLLM and time
are modelled by what they promise: a gateway flips by a view that is at most 10 s old, says so within 5 s, its clock is
wrong by at most 5 s, and it may be cut off or restarted at any moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from acemath_core.wire import SlotState as S
from acemath_registry import ModelRef, Registry, Release, ReleaseMember
from acemath_registry.following import Places, StatusLeases, Usage

OFFERED, ENDED = {S.READY, S.ACTIVE}, {S.RETIRED, S.REJECTED}
SERVING, LIVING = OFFERED | {S.DRAINING}, 2
BAD = 3  # versions of this number are rejected
LIVES = 20  # for each seed; more find no more, and take more time


def member(kind: str, number: int) -> ReleaseMember:
    return ReleaseMember(name=kind, version=f"s{number}-aaaaaaaaaaaa", manifest_sha256=f"{number:064x}")


def release(policy: int, reward: int) -> Release:
    return Release(policy=member("pol", policy), reward=member("rew", reward))


@dataclass
class Slot:
    member: ReleaseMember
    generation: int
    releases: set[str]
    since: float
    clock: World
    state: S = S.STAGING
    proved: bool = False

    @property
    def leaving(self) -> bool:
        return self.state in ENDED

    def move(self, state: S, reason: str | None = None) -> None:
        self.since = self.since if state is self.state else self.clock.now
        self.state = state


class Direct(StatusLeases):
    """Without threads."""

    async def holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        return self._holder(member, generation, releases)

    async def usage(self) -> Usage:
        return self._usage()


class Service:
    """The order of a round of the policy agent and the reward service."""

    def __init__(self, world: World, kind: str) -> None:
        self.world, self.kind, self.slots = world, kind, list[Slot]()
        self.leases = Direct(cast(Registry, world), "default", 30, lambda: world.now)
        self.told = list[bool]()
        self.places: Places[Slot] = Places(self.leases, self.told.append, now=lambda: world.now)

    def find(self, wanted: ReleaseMember) -> Slot | None:
        return next((slot for slot in self.slots if slot.member == wanted), None)

    def named(self, of: Release) -> ReleaseMember:
        return of.policy if self.kind == "pol" else of.reward

    async def round(self) -> None:
        generation, named = self.world.generation, self.world.channel[-1]
        wanted = self.named(named)
        current = [s for s in self.slots if s.state is S.REJECTED and (s.member, s.generation) == (wanted, generation)]
        self.slots = [slot for slot in self.slots if slot.state not in ENDED] + current
        slot = self.find(wanted)
        if slot is not None and slot.state is not S.REJECTED:
            slot.generation = generation
            slot.releases.add(named.id)
        for other in self.slots:
            if other is not slot and other.state is S.STAGING and not other.proved:
                other.move(S.RETIRED)
        self.switch(slot)
        await self.stop_released(slot)
        living = [slot for slot in self.slots if slot.state not in ENDED]
        if self.find(wanted) is None and len(living) >= LIVING:
            gone = await self.places.make_room(ModelRef(wanted.name, wanted.version), living, lambda slot: True)
            if gone is not None:
                gone.move(S.RETIRED)
            return
        self.places.waits_for(None)
        if self.find(wanted) is None:
            self.slots.append(Slot(wanted, generation, {named.id}, self.world.now, self.world))

    def switch(self, wanted: Slot | None) -> None:
        if wanted is None or wanted.state not in SERVING:
            return
        wanted.move(S.ACTIVE)
        for slot in self.slots:
            if slot is not wanted and slot.state in OFFERED:
                slot.move(S.DRAINING)

    async def stop_released(self, wanted: Slot | None) -> None:
        if not any(slot.state is S.ACTIVE for slot in self.slots):
            return
        for slot in self.slots:
            if slot is wanted or slot.state in ENDED or slot.state is S.ACTIVE:
                continue
            if await self.leases.holder(slot.member, slot.generation, slot.releases) is None:
                slot.move(S.RETIRED)

    def finish(self) -> None:
        """What is being brought up is ready, or rejected."""
        for slot in self.slots:
            if slot.state is S.STAGING:
                slot.proved = slot.proved or slot.member != member(self.kind, BAD)
                slot.move(S.READY if slot.proved else S.REJECTED)

    def crash(self) -> None:
        for slot in self.slots[:1]:
            if slot.state in SERVING:
                slot.move(S.STAGING)

    def states(self) -> dict[ReleaseMember, S]:
        return {slot.member: slot.state for slot in self.slots}


@dataclass
class Gateway:
    """The rules of `acemath_gateway.releases`."""

    world: World
    name: str
    skew: float
    target: tuple[int, Release] | None = None
    leases: Counter[str] = field(default_factory=Counter)
    muted: bool = False
    started: float = 0.0
    told: float = -100.0
    dirty: bool = False
    view: Any = None

    def look(self) -> None:
        world = self.world
        pointers = [(world.generation, world.channel[-1])]
        if len(world.channel) > 1:
            pointers.append((world.generation - 1, world.channel[-2]))
        found = world.records.values()
        peers = [(record["generation"], world.known[record["release"]]) for record in found if record["release"]]
        self.view = world.now, pointers, [service.states() for service in world.services], peers

    def flip(self) -> None:
        if self.view is None or self.world.now - self.view[0] > 10:
            return
        _, (newest, *before), states, peers = self.view
        self.view = None
        if (self.target is not None and self.target[1] == newest[1]) or self.can(newest[1], states, OFFERED):
            self.take(newest)
        elif self.target is not None or self.world.now - self.started > 15:
            past = self.target[0] if self.target else 0
            others = [*([] if self.target else before), *sorted(peers, key=lambda peer: -peer[0])]
            self.adopt_older([one for one in others if past < one[0] < newest[0]], newest[1], states)

    def adopt_older(
        self, others: list[tuple[int, Release]], newest: Release, states: list[dict[ReleaseMember, S]]
    ) -> None:
        for other in others:
            if not self.given_up(other[1], newest, states) and self.can(other[1], states, SERVING):
                return self.take(other)
        return None

    def can(self, wanted: Release, states: list[dict[ReleaseMember, S]], good: set[S]) -> bool:
        return states[0].get(wanted.policy) in good and states[1].get(wanted.reward) in good

    def given_up(self, older: Release, newest: Release, states: list[dict[ReleaseMember, S]]) -> bool:
        pairs = ((states[0], older.policy, newest.policy), (states[1], older.reward, newest.reward))
        return any(s.get(old) is S.DRAINING and s.get(new, S.RETIRED) in ENDED for s, old, new in pairs)

    def take(self, pointer: tuple[int, Release]) -> None:
        self.dirty = self.dirty or self.target != pointer
        self.target = pointer

    def beat(self) -> None:
        if self.muted:
            return
        self.told, self.dirty = self.world.now, False
        generation, routed = (self.target[0], self.target[1].id) if self.target else (0, None)
        record = {"generation": generation, "release": routed, "leases": dict(self.leases)}
        self.world.records[self.name] = record | {"at": self.world.now + self.skew}

    def restart(self) -> None:
        """Killed, and started again: its record lies there until the next one."""
        self.target, self.view, self.started = None, None, self.world.now
        self.leases.clear()

    def uses(self) -> set[Release]:
        held = {self.world.release(name) for name, count in self.leases.items() if count}
        return held | ({self.target[1]} if self.target else set())


class World:
    """A channel, two services, gateways; also the registry that `StatusLeases` reads."""

    def __init__(self, skews: list[float]) -> None:
        self.now, self.generation = 1000.0, 0
        self.channel, self.known, self.records = list[Release](), dict[str, Release](), dict[str, dict[str, Any]]()
        self.services = [Service(self, "pol"), Service(self, "rew")]
        self.gateways = [Gateway(self, f"g{i}", skew) for i, skew in enumerate(skews)]
        self.promote(release(0, 0))

    def to_come_back_to(self, channel: str) -> None:
        """Replicas that start anew are modelled elsewhere (`test_making_way`)."""

    def statuses(self, service: str, channel: str | None = None) -> dict[str, dict[str, Any]]:
        return dict(self.records)

    def release(self, name: str) -> Release:
        return self.known[name]

    def promote(self, named: Release) -> None:
        if not self.channel or self.channel[-1] != named:
            self.known[named.id] = named
            self.channel.append(named)
            self.generation += 1

    def rollback(self) -> None:
        if len(self.channel) > 1:
            self.promote(self.channel[-2])

    def tick(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            for gateway in self.gateways:
                if gateway.dirty or self.now - gateway.told >= 5:
                    gateway.beat()

    async def rounds(self) -> None:
        for service in self.services:
            await service.round()
            self.check()

    def check(self) -> None:
        """What a gateway routes to or holds lives, if only to be started again after a crash."""
        for gateway in self.gateways:
            for used in gateway.uses():
                for service in self.services:
                    found = service.find(service.named(used))
                    assert found is not None and found.state not in ENDED, (gateway.name, used.id, service.kind)

    async def calm(self, seconds: int) -> None:
        """Everybody works, nobody is cut off."""
        for gateway in self.gateways:
            gateway.muted = False
            gateway.leases.clear()
        for _ in range(seconds):
            await self.rounds()
            for service in self.services:
                service.finish()
            for gateway in self.gateways:
                gateway.look()
                gateway.flip()
            self.tick(1)


async def live(world: World, chance: random.Random, seconds: int) -> None:
    """Seconds in which anything may happen, in any order within a second."""
    numbers = [0, 1, 2, 4, BAD]
    for _ in range(seconds):
        if chance.random() < 0.06:
            world.promote(release(chance.choice(numbers), chance.choice(numbers)))
        if chance.random() < 0.03:
            world.rollback()
        parts: list[Service | Gateway] = [*world.services, *world.gateways, *world.gateways]
        for part in chance.sample(parts, len(parts)):
            await serve(part, chance) if isinstance(part, Service) else act(part, chance)
            world.check()
        world.tick(chance.choice((1, 1, 1, 1, 4)))


async def serve(service: Service, chance: random.Random) -> None:
    if chance.random() < 0.9:
        await service.round()
    if chance.random() < 0.6:
        service.finish()
    if chance.random() < 0.01:
        service.crash()


def act(gateway: Gateway, chance: random.Random) -> None:
    """Half a poll: a view that is old when it is acted on is what the rule has to stand."""
    if gateway.view is None or chance.random() < 0.1:
        gateway.look()
    elif chance.random() < 0.4:
        gateway.flip()
    if chance.random() < 0.01:
        gateway.restart()
    if chance.random() < 0.01:
        gateway.muted = not gateway.muted
    if chance.random() < 0.1 and gateway.target is not None:
        gateway.leases[gateway.target[1].id] += 1
    if chance.random() < 0.3:
        gateway.leases.clear()


@pytest.mark.parametrize("seed", range(20))
def test_what_a_gateway_uses_is_never_stopped_and_the_next_good_release_goes_in(seed: int) -> None:
    async def play(chance: random.Random) -> None:
        world = World([chance.choice((-5.0, 0.0, 5.0)) for _ in range(chance.randint(1, 3))])
        await world.calm(10)
        await live(world, chance, 60)
        last = release(9, 9)
        world.promote(last)
        await world.calm(150)
        assert {gateway.target for gateway in world.gateways} == {(world.generation, last)}
        for service in world.services:
            assert service.states()[service.named(last)] is S.ACTIVE and service.places.waiting is None

    for life in range(LIVES):
        asyncio.run(play(random.Random(1000 * seed + life)))


@pytest.mark.parametrize("bad", [(2, BAD), (BAD, 2)])
def test_the_time_that_the_next_release_waits(bad: tuple[int, int]) -> None:
    async def play() -> float:
        world = World([0.0, 0.0])
        await world.calm(10)
        world.promote(release(*bad))
        await world.calm(10)
        world.promote(release(4, 4))
        began = world.now
        while world.gateways[0].target != (3, release(4, 4)):
            assert world.now < began + 60
            await world.calm(1)
        return world.now - began

    assert 15 <= asyncio.run(play()) <= 25


def test_an_age_that_grows_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        world = World([0.0])
        await world.calm(10)
        world.promote(release(2, BAD))
        await world.calm(10)
        world.gateways[0].muted = True
        world.promote(release(4, 4))
        for _ in range(60):
            world.tick(1)
            await world.rounds()

    started = time.thread_time()
    asyncio.run(play())
    lines = [record.message for record in caplog.records if "waits for a place" in record.message]
    assert 1 <= len(lines) <= 3 and "s old; if it has ended" in lines[-1]
    assert time.thread_time() - started < 10
