"""The versions that one replica has, and what the channel's word means for each: wait, begin, switch, drain, end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from acemath_core.wire import SlotState
from acemath_registry.following.channel import ChannelFollower, Desired
from acemath_registry.following.leases import Usage
from acemath_registry.following.making_way import MakingWay
from acemath_registry.following.places import Places
from acemath_registry.following.version import BRINGING_UP, ENDED, SERVING, FollowedVersion
from acemath_registry.manifest import ModelKind

_log = logging.getLogger(__name__)
MAX_VERSIONS = 2
"""The one that serves and the one that comes."""
_HISTORY = 8  # ended versions that are still shown
V = TypeVar("V", bound=FollowedVersion)


class Versions(Generic[V]):
    """The bookkeeping that every service that follows a channel has in common.

    Args:
        kind: which of a release's two versions these are.
        make: makes a version of member, generation and releases; it is verifying.
        places: says which one goes when the wanted one finds no place.
        way: lets the old one go before the wanted one is loaded, where that is the strategy.
        on_activated: told of each switch.

    Attributes:
        living: versions that have not been forgotten, the newest last.
    """

    def __init__(
        self,
        kind: ModelKind,
        make: Callable[[Desired], V],
        places: Places[V],
        way: MakingWay[V],
        *,
        on_activated: Callable[[], object],
    ) -> None:
        self._kind, self._make, self._on_activated = kind, make, on_activated
        self._places, self._way = places, way
        self.living: list[V] = []
        self._ended: deque[V] = deque(maxlen=_HISTORY)

    def all(self) -> tuple[V, ...]:
        """The last that ended, then the living."""
        return (*self._ended, *self.living)

    def active(self) -> V | None:
        """The one that the channel named last and that serves."""
        return next((version for version in self.living if version.state is SlotState.ACTIVE), None)

    def answering(self) -> V | None:
        """The active one, or the one that makes room and still answers the jobs that hold it."""
        gated = (version for version in self.living if version.gated and not version.leaving)
        return self.active() or next(gated, None)

    def find(self, desired: Desired) -> V | None:
        """The living version that the channel names."""
        return next((version for version in self.living if version.member == desired.member), None)

    def why_nothing_serves(self, follower: ChannelFollower) -> str:
        """For `/readyz`, in words."""
        desired = follower.desired
        if desired is None:
            return follower.problem or "the channel has not been read yet"
        version = self.find(desired)
        if version is None:
            return self._places.waiting or f"{desired.member.ref} waits for a place"
        return f"{version.ref} is {version.state.value}" + (f": {version.reason}" if version.reason else "")

    def forget_ended(self, desired: Desired | None) -> bool:
        """Move ended versions to the history; a rejected one stays until the channel's generation changes."""
        before = len(self.living)
        for version in [version for version in self.living if version.state in ENDED and not version.busy]:
            named = desired is not None and desired.names(version.member)
            current = desired is not None and named and version.generation == desired.generation
            if version.state is SlotState.RETIRED or not current:
                self.living.remove(version)
                self._ended.append(version)
        return len(self.living) != before

    def canary(self, desired: Desired) -> V | None:
        """The living version that is to have a share of the requests."""
        return None if desired.canary is None else self.find(desired.canary)

    def keeps(self, desired: Desired, version: V) -> bool:
        """Whether the channel names the version, for all requests or for a share of them."""
        return version is self.find(desired) or version is self.canary(desired)

    def note_wanted(self, desired: Desired) -> None:
        """Remember which generation and release named the wanted version last, and the canary's."""
        for wanted in (desired, desired.canary):
            version = None if wanted is None else self.find(wanted)
            if wanted is not None and version is not None and version.state is not SlotState.REJECTED:
                version.generation = wanted.generation
                version.named_by(wanted.release)
                version.shared = version.shared or version.member != desired.member

    def switch(self, desired: Desired) -> None:
        """READY becomes ACTIVE when the channel names it; then, and only then, others drain. A canary stays READY."""
        wanted = self.find(desired)
        if wanted is None or wanted.state not in SERVING or wanted.leaving:
            self._let_stand_in()
            return
        if wanted.state is not SlotState.ACTIVE:
            wanted.move(SlotState.ACTIVE)
            self._on_activated()
        canary = self.canary(desired)
        for version in self.living:
            # What gateways route by comes back even when it is slower: they flip only when the other half is there.
            version.stands_in = version.stands_in and version.state in BRINGING_UP
            if version is canary and version is not wanted and version.state is not SlotState.READY:
                self._take_back(version)
            elif version not in (wanted, canary) and version.state in (SlotState.READY, SlotState.ACTIVE):
                version.move(SlotState.DRAINING)

    def _let_stand_in(self) -> None:
        ready = (version for version in self.living if version.stands_in and version.state is SlotState.READY)
        version = next(ready, None)
        if version is not None and self.active() is None:
            version.move(SlotState.ACTIVE)
            self._on_activated()

    def _take_back(self, canary: V) -> None:
        """A version that served, or drains, gets a share: it is ready, without another start."""
        if canary.state in SERVING and not canary.leaving:
            canary.move(SlotState.READY)

    async def bring_up_wanted(
        self, desired: Desired, up: Callable[[V], object], quiet: Callable[[V], bool]
    ) -> V | None:
        """Bring up what is named; where no place is free, one that no gateway ever used may have to go.

        A canary comes once the named one is active and a place is free; nothing makes room for it. After a restart in
        the middle of a swap what gateways route by comes first, or served last when they were restarted, too: they wait
        for it, and the named one may be bad. Where only one version fits, that also comes back after the named one was
        bad.

        Args:
            desired: what is named.
            up: begins to bring a version up.
            quiet: whether a version has had nothing to do for a while.

        Returns:
            The version that is to be stopped now, None for none; one with a `refusal` is to be rejected.
        """
        unused = await self._begin_wanted(desired, up, quiet)
        going = await self._way.step(desired, self.find(desired), self.living, quiet)
        return unused or going

    async def _begin_wanted(self, desired: Desired, up: Callable[[V], object], quiet: Callable[[V], bool]) -> V | None:
        taken = [version for version in self.living if version.state not in ENDED or version.busy]
        if self.find(desired) is None and len(taken) >= MAX_VERSIONS:
            return await self._places.make_room(desired.member.ref, taken, quiet)
        self._places.waits_for(self._way.waiting or self._unfit(desired))
        free = not taken if self._way.one_at_a_time else len(taken) < MAX_VERSIONS
        routed = await self._routed(desired) if free and self.active() is None else None
        if routed is not None:
            self._begin(routed, up).stands_in = True
        elif self.find(desired) is None:
            self._begin(desired, up)
        elif desired.canary is not None and self.find(desired.canary) is None and not self._way.one_at_a_time:
            active = self.active()
            if active is not None and active is self.find(desired) and len(taken) < MAX_VERSIONS:
                self._begin(desired.canary, up).shared = True  # it may be ready before the next look
        return None

    def _unfit(self, desired: Desired) -> str | None:
        """Why a canary is not brought up, where that is by design."""
        canary = desired.canary
        if canary is None or canary.member == desired.member or not self._way.one_at_a_time:
            return None
        return f"{canary.member.ref} gets no share here: with swap_strategy resource_preserving one version is loaded"

    async def _routed(self, desired: Desired) -> Desired | None:
        """What the newest gateway routes by, or else what was stopped for the named one or served last, when that is
        neither named nor here, nor was refused here.
        """
        usage = await self._places.usage()
        ours = [(use, one) for one, use in usage.users.items() if use.kind is self._kind and use.generation]
        if usage.unknown is not None or not ours:
            found = self._way.way_back() or await self._served_last(desired, usage)
        else:
            use, member = max(ours, key=lambda found: found[0].generation)
            found = Desired(member, use.release, use.generation)
        refused = [version for version in self._ended if version.state is SlotState.REJECTED]
        here = {version.member for version in (*self.living, *refused)}
        return None if found is None or desired.names(found.member) or found.member in here else found

    async def _served_last(self, desired: Desired, usage: Usage) -> Desired | None:
        """Where only one version fits, it takes the place of the named one only when that will not serve."""
        served = usage.served.get(self._kind)
        if served is None or not self._way.one_at_a_time:
            return served
        tried = (*self.living, *self._ended)
        refused = any(one.member == desired.member and one.state is SlotState.REJECTED for one in tried)
        return served if refused or await self._way.refused(desired) else None

    def _begin(self, desired: Desired, up: Callable[[V], object]) -> V:
        version = self._make(desired)
        self._way.admit(version, self.living)
        self.living.append(version)
        up(version)
        return version


async def rounds(one: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Do rounds until cancelled, `seconds` apart; one that fails is logged, and the next starts afresh."""
    while True:
        try:
            await one()
        except Exception:
            _log.exception("a round failed; the next one starts afresh")
        await asyncio.sleep(seconds)
