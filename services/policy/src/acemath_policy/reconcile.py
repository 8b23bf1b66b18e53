"""The loop that makes what runs equal to what the channel names.

Level-triggered: every round looks at the channel, at the processes and at the leases as they are now, and takes the
next step; nothing depends on having seen an event. A bad checkpoint changes nothing but a status line.

    verifying -> staging -> warming -> ready -> active -> draining -> retired
        +-----------+----------+-> rejected         +<-------+ rollback while draining

At most two servers run: the one that serves and the one that comes. Of several promotions in a row only the last is
brought up. Which one goes where both places are taken is `acemath_registry.following.places`; with the
resource-preserving strategy at most one runs (`acemath_registry.following.making_way`).
"""

from __future__ import annotations

import asyncio
import logging
import time

from acemath_core.wire import Slot, SlotState
from acemath_policy.lifting import Lift
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.server import Launcher
from acemath_policy.settings import PolicySettings
from acemath_policy.slots import VersionSlot
from acemath_registry import ModelKind, Registry
from acemath_registry.following import (
    BRINGING_UP,
    ENDED,
    SERVING,
    SETTLE_SECONDS,
    ChannelFollower,
    Desired,
    Leases,
    MakingWay,
    Places,
    StatusFile,
    StatusRefusals,
    Versions,
    prune,
    rounds,
)
from acemath_web.health import Readiness

_log = logging.getLogger(__name__)
_STABLE_SECONDS = 300.0  # after which an earlier failure is forgotten


class Reconciler:
    """Brings versions up, switches, drains and stops them.

    Args:
        settings: the agent's.
        registry: models, channels and status files.
        launcher: makes vLLM servers.
        leases: who still uses an old version.
        metrics: the agent's instruments.
        settle_seconds: how much newer than a version's draining the gateways' records must be, see `Places`.
    """

    def __init__(
        self,
        settings: PolicySettings,
        registry: Registry,
        launcher: Launcher,
        leases: Leases,
        metrics: PolicyMetrics,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._leases, self._metrics = leases, metrics
        self._reader = ChannelFollower(
            registry,
            settings.channel,
            ModelKind.POLICY,
            on_generation=metrics.generation.set,
            on_error=metrics.registry_errors.labels("channel").inc,
        )
        self._places: Places[VersionSlot] = Places(leases, metrics.swap_waiting.set, settle_seconds)
        activated = metrics.swaps.labels("activated").inc
        strategy, patience = settings.swap_strategy, settings.gate_timeout_seconds
        refusals = StatusRefusals(registry, settings.channel)
        way: MakingWay[VersionSlot] = MakingWay(strategy, leases, refusals, patience, settle_seconds)
        self._versions = Versions(ModelKind.POLICY, _begin, self._places, way, on_activated=activated)
        self._slots = self._versions.living
        self._to_prune = False  # a version ended, and its copy may have to go when none is being made
        self._lift = Lift(settings, registry, launcher, metrics, self._slots)
        self._status = StatusFile(registry, "policy", settings.instance, metrics.registry_errors.labels("status").inc)

    # ------------------------------------------------------------------------------------------------ what others see

    def slots(self) -> list[Slot]:
        """Every version, the newest last; ended ones first."""
        return [slot.wire() for slot in self._versions.all()]

    def readiness(self) -> Readiness:
        """Whether the active version makes tokens; from what the last rounds saw, at once."""
        active = self._versions.answering()
        details: dict[str, object] = {"slots": {str(slot.ref): slot.state.value for slot in self._slots}}
        details["waiting"] = self._places.waiting
        if active is None or active.server is None:
            return Readiness(False, self._versions.why_nothing_serves(self._reader), details)
        details |= {"active": str(active.ref), "seconds_since_token": round(active.server.pulse.age(), 1)}
        silence = active.silence()
        return Readiness(silence is None, silence or "", details)

    # ----------------------------------------------------------------------------------------------------- the rounds

    async def run(self) -> None:
        """Do rounds until cancelled."""
        await rounds(self.round, self._settings.poll_seconds)

    async def round(self) -> None:
        """One look at everything, and the next step."""
        desired = await self._reader.read()
        self._to_prune = self._versions.forget_ended(desired) or self._to_prune
        if self._to_prune:
            await self._prune_copies()
        if desired is not None:
            self._versions.note_wanted(desired)
            self._supersede(desired)
            self._restart_dead()
            self._versions.switch(desired)
            await self._stop_released(desired)
            unused = await self._versions.bring_up_wanted(desired, self._lift.up, self._idle)
            if unused is not None and unused.refusal is not None:
                self._lift.reject(unused, unused.refusal)
            elif unused is not None:
                self._lift.down(unused, None, at_once=not self._running(unused))
        self._metrics.set_slots(slot.state for slot in self._versions.all())
        self._metrics.ready.set(self.readiness().ready)
        await self._write_status()

    async def _write_status(self) -> None:
        generation = self._reader.desired.generation if self._reader.desired else None
        slots = [slot.model_dump(mode="json") for slot in self.slots()]
        document = {
            "channel": self._settings.channel,
            "generation": generation,
            "ready": self.readiness().ready,
            "slots": slots,
        }
        await self._status.write(document | {"waiting": self._places.waiting})

    async def close(self) -> None:
        """Stop every server, finishing what it has."""
        for slot in self._slots:
            if slot.busy and slot.work is not None and not slot.stopping:
                slot.work.cancel()
        await asyncio.gather(*(slot.work for slot in self._slots if slot.work), return_exceptions=True)
        running = [slot.server for slot in self._slots if slot.server is not None and not slot.stopping]
        await asyncio.gather(*(server.stop() for server in running))

    async def _prune_copies(self) -> None:
        if any(slot.state is SlotState.VERIFYING for slot in self._slots):
            return
        self._to_prune = False
        in_use = [slot.ref for slot in self._slots if slot.model is not None]
        await asyncio.to_thread(prune, self._settings.cache_dir / "models", in_use, self._settings.spare_copies)

    def _supersede(self, desired: Desired) -> None:
        """Give up bringing up what the channel no longer names, unless requests may still need it."""
        for slot in self._slots:
            kept = desired.names(slot.member) or slot.proved or slot.stands_in
            if slot.state in BRINGING_UP and not kept and not slot.stopping:
                self._lift.down(slot, "superseded", at_once=True)
                self._metrics.swaps.labels("superseded").inc()

    def _restart_dead(self) -> None:
        for slot in self._slots:
            cause = slot.server.dead() if slot.server is not None and slot.state in SERVING else None
            if cause is not None and not slot.stopping:
                _log.error("%s: %s; starting it again", slot.ref, cause)
                self._metrics.restarts.inc()
                slot.failures = slot.failures + 1 if time.time() - slot.since < _STABLE_SECONDS else 1
                slot.move(SlotState.STAGING, cause)
                self._lift.up(slot)

    async def _stop_released(self, desired: Desired) -> None:
        """Stop what is no longer named, once no gateway needs it and it has been quiet for a while.

        One that crashed while it drained is being started again for whoever may still need it; it goes, too. Another
        version must be active, not necessarily the named one: that may be waiting for this place.
        """
        if self._versions.active() is None:
            return
        for slot in self._slots:
            if (
                self._versions.keeps(desired, slot)
                or slot.stopping
                or slot.state in ENDED
                or slot.state is SlotState.ACTIVE
            ):
                continue
            held = await self._leases.holder(slot.member, slot.generation, slot.releases)
            if held is None and slot.shared:
                held = await self._places.lingers(slot)
            running = self._running(slot)
            if held is None and not self._idle(slot):
                held = "requests are running, or were a moment ago"
            if held is None:
                self._lift.down(slot, None, at_once=not running)
            elif running:
                slot.move(SlotState.DRAINING, held)

    def _quiet(self, slot: VersionSlot) -> bool:
        return slot.server is not None and slot.server.pulse.quiet_for() >= self._settings.drain_quiet_seconds

    def _running(self, slot: VersionSlot) -> bool:
        return slot.state is SlotState.DRAINING and slot.server is not None

    def _idle(self, slot: VersionSlot) -> bool:
        return not self._running(slot) or self._quiet(slot)


def _begin(desired: Desired) -> VersionSlot:
    return VersionSlot(desired.member, desired.generation, {desired.release})
