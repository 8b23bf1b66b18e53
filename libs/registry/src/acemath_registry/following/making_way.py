"""The resource-preserving swap: the old version goes before the new one is loaded, for models of which two do not fit.

    wanted   verifying ── verified; waits for its place ──────────────► staging ─► warming ─► active
    old      active ── gated: draining, no new jobs ─► stopped ─┘

A version is loaded, or may be, only while it has its place, and at most one has it. The wanted one is verified beside
the old one; then the old one is *gated*: gateways give it no new jobs, and let them wait instead. It is stopped when
every gateway has said, by what it saw `SETTLE_SECONDS` after the gating or later, that no job holds it. Until then all
of it can be taken back: the channel names another version, a gateway's record is missing or old, or the time is up.

That a gateway routes by the old version does not keep it: the gateway has nothing else to route by. A new version of
whose release another part was refused, here or in the other service, makes nobody go, and goes itself: no gateway will
ever use it, and what they use is not whole without the old one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, Generic, TypeVar

from acemath_core.wire import SlotState
from acemath_registry.following.channel import Desired
from acemath_registry.following.leases import Leases, Usage
from acemath_registry.following.places import SETTLE_SECONDS
from acemath_registry.following.refusals import Refusals
from acemath_registry.following.version import ENDED, SERVING, FollowedVersion

_log = logging.getLogger(__name__)
GATE_TIMEOUT_SECONDS: Final = 300.0
_OFFERED = frozenset({SlotState.READY, SlotState.ACTIVE})
V = TypeVar("V", bound=FollowedVersion)


class SwapStrategy(StrEnum):
    """Which goes first in a swap, named as TensorFlow Serving names them."""

    AVAILABILITY_PRESERVING = "availability_preserving"  # the new version is loaded beside the old one
    RESOURCE_PRESERVING = "resource_preserving"  # the old version is stopped first: at most one is loaded


class MakingWay(Generic[V]):
    """Gives places to versions, and makes the old one give up its own.

    Args:
        strategy: with availability-preserving every version has its place at once.
        leases: what gateways say.
        refusals: what other replicas say of the release.
        gate_timeout_seconds: longest time from a gating to the stop; then the waiting version is rejected.
        settle_seconds: how much newer than the gating the gateways' views must be.
        now: Unix time.

    Attributes:
        waiting: what the wanted version waits for, in words; None when it does not.
    """

    def __init__(
        self,
        strategy: SwapStrategy,
        leases: Leases,
        refusals: Refusals,
        gate_timeout_seconds: float = GATE_TIMEOUT_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.one_at_a_time = strategy is SwapStrategy.RESOURCE_PRESERVING
        self._leases, self._refusals, self._now = leases, refusals, now
        self._gate_timeout, self._settle = gate_timeout_seconds, settle_seconds
        self._gated_at: float | None = None
        self._stopped: Desired | None = None
        self.waiting: str | None = None

    def admit(self, version: V, living: Sequence[V]) -> None:
        """Let a version that begins be loaded at once where it may be."""
        if not self.one_at_a_time:
            version.give_place()
        elif not any(other.placed for other in living):
            self._give(version)

    def way_back(self) -> Desired | None:
        """The version that was stopped last, while nothing has become active instead."""
        return self._stopped

    async def refused(self, desired: Desired) -> str | None:
        """Which replica refused a version of the release, in words; None while none is known to have."""
        return await self._refusals.of(desired)

    async def step(
        self, desired: Desired, wanted: V | None, living: Sequence[V], quiet: Callable[[V], bool]
    ) -> V | None:
        """Gate, take back, or give a place, as things are now; the version that is to be stopped now, None for none.

        Args:
            desired: what the channel names.
            wanted: the version of it.
            living: every version that lives, the newest last.
            quiet: whether a version has had nothing to do for a while.
        """
        if not self.one_at_a_time:
            return None
        usage = await self._leases.usage()
        useless = await self._useless(desired, wanted, usage)
        if any(version.state is SlotState.ACTIVE for version in living):
            self._stopped = None
        holder = next((version for version in living if version.placed), None)
        if holder is None:
            self._give_to_first(living)
        if holder is None or wanted is None or wanted is holder or not wanted.waits or wanted.leaving:
            self._take_back(holder, wanted)
            return self._give_back(wanted, useless) if wanted is not None and useless is not None else None
        if useless is not None:
            self._give_up(holder, wanted, useless)
            return None
        going, self.waiting = self._make_go(holder, wanted, usage, quiet)
        return going

    def _give_to_first(self, living: Sequence[V]) -> None:
        able = (version for version in living if version.state not in ENDED and not version.leaving)
        version = next((version for version in able if version.refusal is None), None)
        if version is not None:
            self._give(version)

    def _give(self, version: V) -> None:
        version.displaced = self._stopped is not None and self._stopped.member != version.member
        version.give_place()

    async def _useless(self, desired: Desired, wanted: V | None, usage: Usage) -> str | None:
        """Why no gateway will ever use the wanted version, while there is another one to use; None when they may."""
        others = any(use.generation for use in usage.users.values()) or any(
            served.release != desired.release for served in usage.served.values()
        )
        if wanted is None or wanted.leaving or usage.unknown is not None or not others or wanted.member in usage.users:
            return None
        return await self._refusals.of(desired) if wanted.waits or wanted.state in _OFFERED else None

    def _give_back(self, wanted: V, useless: str) -> V | None:
        if wanted.state not in _OFFERED:
            return None
        wanted.refusal = useless
        _log.error("%s goes again: %s", wanted.ref, useless)
        return wanted

    def _take_back(self, holder: V | None, wanted: V | None) -> None:
        """Nobody waits: what was gated serves again."""
        self.waiting = self._gated_at = None
        if holder is not None and holder.gated and not holder.leaving:
            holder.move(SlotState.ACTIVE)

    def _make_go(self, old: V, wanted: V, usage: Usage, quiet: Callable[[V], bool]) -> tuple[V | None, str]:
        """Whether the old version is to be stopped now, and what the wanted one waits for."""
        waits = f"{wanted.ref} waits until {old.ref} has made room"
        if old.leaving:
            return None, f"{waits}: it is being stopped"
        unknown = usage.unknown or (None if usage.viewed is not None else "a gateway does not say what it sees")
        if unknown is not None:
            self._keep(old)
            return None, f"{waits}: {unknown}"
        held = self._held(old, wanted, usage, quiet)
        if held is None:
            self._note_stop(old)
            return old, f"{waits}: it is being stopped"
        if self._gated_at is not None and self._now() >= self._gated_at + self._gate_timeout:
            self._give_up(old, wanted, f"{old.ref} did not make room within {self._gate_timeout:g} s: {held}")
        return None, f"{waits}: {held}"

    def _held(self, old: V, wanted: V, usage: Usage, quiet: Callable[[V], bool]) -> str | None:
        """Why it cannot be stopped now; None when it can. What serves is gated first."""
        if old.state not in SERVING:
            if not old.failures:
                return "it is being brought up"
            return usage.leased.get(old.member)  # it died: what it had is lost, and another start would be its last
        if not old.gated:
            self._gate(old, wanted)
        if old.member in usage.leased:
            return usage.leased[old.member]
        if usage.viewed is None or self._gated_at is None or usage.viewed < self._gated_at + self._settle:
            return "until every gateway has seen for a while that it takes no new jobs"
        return None if quiet(old) else "requests are running, or were a moment ago"

    def _gate(self, old: V, wanted: V) -> None:
        self._gated_at = self._now()
        old.move(SlotState.DRAINING, f"makes room for {wanted.ref}")
        old.gated = True

    def _keep(self, old: V) -> None:
        """The old version goes on as if nothing waited."""
        self._gated_at = None
        if old.state in SERVING and old.state is not SlotState.ACTIVE and not old.leaving:
            old.move(SlotState.ACTIVE)

    def _note_stop(self, old: V) -> None:
        self._gated_at = None
        self._stopped = Desired(old.member, max(old.releases, default=""), old.generation)

    def _give_up(self, old: V, wanted: V, why: str) -> None:
        self.waiting = None
        wanted.refuse(why)
        self._keep(old)
