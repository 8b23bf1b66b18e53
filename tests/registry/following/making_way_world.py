"""One service with the resource-preserving strategy as a model: its versions, its gateways, a channel, and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from acemath_core.wire import SlotState as S
from acemath_registry import ModelKind, Registry, ReleaseMember
from acemath_registry.following import (
    SERVING,
    Desired,
    FollowedVersion,
    Lifting,
    MakingWay,
    Patience,
    Places,
    SwapStrategy,
    Usage,
    Versions,
)
from acemath_registry.following.leases import Use

SETTLE, TIMEOUT = 15.0, 300.0


def member(number: int) -> ReleaseMember:
    return ReleaseMember(name="p", version=f"s{number}-aaaaaaaaaaaa", manifest_sha256=f"{number:064x}")


class Bad(Exception):
    """The version is bad."""


class Flaw(Exception):
    """An attempt failed."""


@dataclass
class Gateways:
    """What all gateways say together; a view is as old as the last `look`."""

    world: World
    unknown: str | None = None
    routed: tuple[int, int] | None = None  # version, generation
    leased: set[int] = field(default_factory=set)
    viewed: float | None = 0.0
    flips: bool = True  # False: the other half of what is named is not there

    async def holder(self, member: ReleaseMember, generation: int, releases: Collection[str]) -> str | None:
        return (await self.usage()).unknown or (
            "g: routes" if self.routed and member in (await self.usage()).users else None
        )

    async def usage(self) -> Usage:
        if self.unknown:
            return Usage(self.unknown)
        users = {}
        if self.routed is not None:
            users[member(self.routed[0])] = Use("g: routes", self.routed[1], f"r-{self.routed[0]}", ModelKind.POLICY)
        leased = {member(number): "g: it holds leases" for number in self.leased}
        return Usage(None, self.world.now, users, leased, self.viewed)

    def look(self) -> None:
        """As a gateway's poll: flip to what is ready and not gated, where it may."""
        self.viewed = self.world.now
        named = self.world.find(self.world.named)
        whole = self.flips and self.world.named not in self.world.halves
        if whole and named is not None and named.state in (S.READY, S.ACTIVE):
            self.routed = (self.world.named, self.world.generation)

    def lease(self) -> None:
        """A new job, where the version that is routed by takes any."""
        found = self.world.find(self.routed[0]) if self.routed else None
        if found is not None and self.routed and found.state in SERVING and not found.gated and not found.leaving:
            self.leased.add(self.routed[0])


class Lift(Lifting[FollowedVersion]):
    """Each step of each version waits until the test lets it go on, or says how it fails."""

    def __init__(self, world: World, registry: Registry) -> None:
        self.world = world
        super().__init__(
            Patience(attempts=2, backoff_max_seconds=0.001, bad=(Bad,), transient=(Flaw,)),
            world.versions.living,
            registry=registry,
            replica="policy/0",
            on_rejected=lambda: None,
            on_phase=lambda phase, seconds: None,
        )

    def down(self, version: FollowedVersion) -> None:
        earlier = version.work if version.busy else None
        version.work = asyncio.create_task(self._stop(version, earlier))

    async def _stop(self, version: FollowedVersion, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            earlier.cancel()
            await asyncio.wait({earlier})
        self.world.loaded.discard(version.member)
        version.move(S.RETIRED)

    async def _let_go(self, version: FollowedVersion) -> None:
        self.world.loaded.discard(version.member)

    async def _wait(self, failed: int) -> None:
        """In the model's time: what takes real time would be overtaken by its clock."""
        await asyncio.sleep(0)

    async def _reject(self, version: FollowedVersion, reason: str) -> None:
        """Without the registry's log, which is written by a thread, in real time."""
        await self._let_go(version)
        version.move(S.REJECTED, reason)

    async def _attempt(self, version: FollowedVersion) -> None:
        version.move(S.VERIFYING)
        await self._pass(version, "verify")
        await self._until_placed(version)
        version.move(S.STAGING)
        self.world.load(version.member)
        await self._pass(version, "stage")
        version.move(S.READY)

    async def _pass(self, version: FollowedVersion, phase: str) -> None:
        await asyncio.sleep(0)
        error = self.world.faults.get((version.member, phase))
        if error is not None:
            raise error


class World:
    """One service with the resource-preserving strategy, its gateways, and a channel."""

    def __init__(self, registry: Registry, strategy: SwapStrategy = SwapStrategy.RESOURCE_PRESERVING) -> None:
        self.now, self.generation, self.named = 1000.0, 0, 0
        self.registry, self.strategy = registry, strategy
        self.gateways = Gateways(self)
        self.loaded: set[ReleaseMember] = set()
        self.faults: dict[tuple[ReleaseMember, str], Exception] = {}
        self.canary: int | None = None
        self.halves: set[int] = set()  # versions of which the other half was refused
        self.start()

    def start(self) -> None:
        """The service begins, or begins again: nothing is remembered."""
        self.loaded.clear()
        self.way: MakingWay[FollowedVersion] = MakingWay(
            self.strategy, self.gateways, self, TIMEOUT, SETTLE, now=lambda: self.now
        )
        self.places: Places[FollowedVersion] = Places(self.gateways, lambda waits: None, SETTLE, now=lambda: self.now)
        self.versions = Versions(ModelKind.POLICY, _make, self.places, self.way, on_activated=lambda: None)
        self.lift = Lift(self, self.registry)

    async def of(self, desired: Desired) -> str | None:
        """What other replicas say of the release."""
        return "reward/0 refused r@s2" if desired.member in {member(number) for number in self.halves} else None

    def load(self, member: ReleaseMember) -> None:
        self.loaded.add(member)
        limit = 1 if self.strategy is SwapStrategy.RESOURCE_PRESERVING else 2
        assert len(self.loaded) <= limit, "two are loaded"

    def promote(self, number: int) -> None:
        self.named, self.generation = number, self.generation + 1

    def find(self, number: int) -> FollowedVersion | None:
        living = self.versions.living
        return next((version for version in living if version.member == member(number)), None)

    def state(self, number: int) -> S | None:
        found = [version for version in self.versions.all() if version.member == member(number)]
        return found[-1].state if found else None

    def desired(self) -> Desired:
        canary = None if self.canary is None else Desired(member(self.canary), "r-canary", self.generation)
        return Desired(member(self.named), f"r-{self.named}", self.generation, canary)

    async def round(self) -> None:
        """The order of a round of the services."""
        desired = self.desired()
        self.versions.forget_ended(desired)
        self.versions.note_wanted(desired)
        for version in self.versions.living:
            coming = version.state in (S.VERIFYING, S.STAGING)
            if coming and not desired.names(version.member) and not version.stands_in and not version.failures:
                self.lift.down(version)
                version.move(S.RETIRED)
        self.versions.switch(desired)
        going = await self.versions.bring_up_wanted(desired, self.lift.up, lambda version: True)
        if going is not None and going.refusal is not None:
            assert self.gateways.routed is None or going.member != member(self.gateways.routed[0])
            self.lift.reject(going, going.refusal)
        elif going is not None:
            assert going.member not in {member(number) for number in self.gateways.leased}, "a job holds it"
            self.lift.down(going)

    async def until(self, condition: Callable[[], object]) -> None:
        """Rounds until something holds; a second passes in each, and gateways look."""
        for _ in range(1000):
            if condition():
                return
            await self.round()
            self.gateways.look()
            self.now += 1
            await self.idle()
        raise AssertionError([(str(v.ref), v.state, v.reason, v.gated) for v in self.versions.all()])

    async def idle(self) -> None:
        """Let tasks that can go on go on."""
        for _ in range(5):
            await asyncio.sleep(0)

    def crash(self, number: int) -> None:
        """The engine died; it is begun again, as the services do."""
        found = self.find(number)
        if found is not None and found.state in SERVING and not found.busy:
            found.failures += 1
            self.loaded.discard(found.member)
            found.move(S.STAGING, "it died")
            self.lift.up(found)

    async def end(self) -> None:
        works = [version.work for version in self.versions.living if version.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


def _make(desired: Desired) -> FollowedVersion:
    return FollowedVersion(desired.member, desired.generation, {desired.release})
