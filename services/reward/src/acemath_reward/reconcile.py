"""The loop that makes what is loaded equal to what the channel names.

Level-triggered, as the policy agent's: every round looks at the channel and the leases as they are now and takes the
next step. A bad checkpoint changes nothing but a status line.

    verifying -> staging -> warming -> ready -> active -> draining -> retired
        +-----------+----------+-> rejected         +<-------+ rollback while draining

At most two versions are in memory; a third waits, also for a load that was given up and goes on in its thread. Of
several promotions in a row only the last is brought up. Which one goes where both places are taken is
`acemath_registry.following.places`; with the resource-preserving strategy at most one is in memory
(`acemath_registry.following.making_way`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_core.wire import Slot, SlotState
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
from acemath_reward.batcher import Batcher
from acemath_reward.engine.allocator import give_back_freed_memory
from acemath_reward.lifting import Lift
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader, RewardModel
from acemath_reward.pulse import EnginePulse, PulseLimits
from acemath_reward.settings import RewardSettings
from acemath_reward.versions import VersionSlot
from acemath_web.health import Readiness

_log = logging.getLogger(__name__)
_STABLE_SECONDS = 300.0  # after which an earlier failure is forgotten


class Reconciler:
    """Loads versions, switches, drains and drops them.

    Args:
        settings: the service's.
        registry: models, channels and status files.
        load_model: makes a model of a directory.
        batcher: its thread runs the checks of a new version.
        leases: who still uses an old version.
        metrics: the service's instruments.
        on_lost: told why the engine will not compute again in this process.
        settle_seconds: how much newer than a version's draining the gateways' records must be, see `Places`.
    """

    def __init__(
        self,
        settings: RewardSettings,
        registry: Registry,
        load_model: ModelLoader,
        batcher: Batcher,
        leases: Leases,
        metrics: RewardMetrics,
        on_lost: Callable[[str], None],
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._settings, self._leases, self._metrics = settings, leases, metrics
        self._reader = ChannelFollower(
            registry,
            settings.channel,
            ModelKind.REWARD,
            on_generation=metrics.generation.set,
            on_error=metrics.registry_errors.labels("channel").inc,
        )
        self._status = StatusFile(registry, "reward", settings.instance, metrics.registry_errors.labels("status").inc)
        limits = PulseLimits(settings.stuck_seconds, settings.lost_seconds)
        self._pulse = EnginePulse(batcher, limits, self._computing)
        self._on_lost = on_lost
        self._places: Places[VersionSlot] = Places(leases, metrics.swap_waiting.set, settle_seconds)
        activated = metrics.swaps.labels("activated").inc
        strategy, patience = settings.swap_strategy, settings.gate_timeout_seconds
        refusals = StatusRefusals(registry, settings.channel)
        way: MakingWay[VersionSlot] = MakingWay(strategy, leases, refusals, patience, settle_seconds)
        self._versions = Versions(ModelKind.REWARD, _begin, self._places, way, on_activated=activated)
        self._slots = self._versions.living
        self._to_prune = False  # a version ended, and its copy may have to go when none is being made
        self._lift = Lift(settings, registry, load_model, batcher, metrics, self._slots)
        self._shown: VersionSlot | None = None  # whose figures `model_info` shows

    # ------------------------------------------------------------------------------------------------ what others see

    def slots(self) -> list[Slot]:
        """Every version, the newest last; ended ones first."""
        stuck = self._pulse.problem()
        return [slot.wire(stuck) for slot in self._versions.all()]

    def choose(self, version: str | None) -> VersionSlot:
        """The slot that serves a version; None means the active one.

        Raises:
            Conflict: (`model_not_served`) lists what is served.
            Unavailable: (`not_ready`) nothing is served yet.
        """
        serving = [slot for slot in self._slots if slot.state in SERVING and slot.served is not None]
        for slot in serving:
            if str(slot.ref) == version or (version is None and slot.state is SlotState.ACTIVE):
                return slot
        if version is None and all(slot.gated for slot in serving):
            raise Unavailable(
                f"no version is active: {self._versions.why_nothing_serves(self._reader)}",
                code=ErrorCode.NOT_READY,
                retry_after=2,
            )
        self._metrics.rejections.labels("not_served").inc()
        served = ", ".join(str(slot.ref) for slot in serving) or "nothing yet"
        raise Conflict(
            f"{version or 'an active version'} is not served here; served: {served}",
            param="model",
            code=ErrorCode.MODEL_NOT_SERVED,
        )

    def readiness(self) -> Readiness:
        """Whether a version is active; what it runs on and what its checks found, for `?verbose`."""
        details: dict[str, object] = {"versions": {str(slot.ref): slot.details() for slot in self._slots}}
        details["waiting"] = self._places.waiting
        stuck = self._pulse.problem()
        if stuck is not None:
            return Readiness(False, stuck, details)
        active = self._versions.answering()
        if active is None:
            return Readiness(False, self._versions.why_nothing_serves(self._reader), details)
        broken = active.broken()  # no round has seen it yet
        return Readiness(broken is None, broken or "", details)

    # ----------------------------------------------------------------------------------------------------- the rounds

    async def run(self) -> None:
        """Do rounds until cancelled."""
        await rounds(self.round, self._settings.poll_seconds)

    async def round(self) -> None:
        """One look at everything, and the next step."""
        self._pulse.beat()
        if (lost := self._pulse.lost()) is not None:
            self._on_lost(lost)
        desired = await self._reader.read()
        if self._versions.forget_ended(desired):
            self._to_prune = True
            await asyncio.to_thread(give_back_freed_memory)  # what the version had: two live, many have lived
        if self._to_prune:
            await self._prune_copies()
        if desired is not None:
            self._versions.note_wanted(desired)
            self._supersede(desired)
            self._restart_broken()
            self._versions.switch(desired)
            await self._drop_released(desired)
            unused = await self._versions.bring_up_wanted(desired, self._lift.up, self._quiet)
            if unused is not None and unused.refusal is not None:
                self._lift.reject(unused, unused.refusal)
            elif unused is not None:
                self._lift.down(unused)
        self._metrics.set_versions(slot.state for slot in self._versions.all())
        self._metrics.ready.set(self.readiness().ready)
        self._show_active()
        await self._write_status(desired)

    def _computing(self) -> RewardModel | None:
        """The active model, where this process computes it: a server of its own is watched by itself."""
        active = self._versions.active()
        model = None if active is None or active.served is None else active.served.engine.model
        return None if model is None or model.server is not None else model

    def _show_active(self) -> None:
        active = self._versions.active()
        if active is None or active.served is None or active is self._shown:
            return
        facts, self._shown = active.served.engine.model.facts(), active
        self._metrics.model_info.clear()
        self._metrics.model_info.labels(str(active.ref), str(facts.get("dtype")), str(facts.get("device"))).set(1)
        self._metrics.invariant.set(bool(active.served.check.batch_invariant))
        peak = facts.get("peak_tokens_per_second")
        self._metrics.peak.set(peak if isinstance(peak, int) else 0)

    async def _write_status(self, desired: Desired | None) -> None:
        generation = desired.generation if desired else None
        slots = [slot.model_dump(mode="json") for slot in self.slots()]
        document = {
            "channel": self._settings.channel,
            "generation": generation,
            "ready": self.readiness().ready,
            "slots": slots,
        }
        await self._status.write(document | {"waiting": self._places.waiting})

    async def close(self) -> None:
        """Wait for what is being loaded (a load cannot be broken off), and let go of every version."""
        for slot in self._slots:
            if slot.state not in ENDED:
                self._lift.down(slot)
        works = [slot.work for slot in self._slots if slot.work is not None]
        await asyncio.gather(*works, self._pulse.close(), return_exceptions=True)
        self._slots.clear()

    async def _prune_copies(self) -> None:
        if not any(slot.state in BRINGING_UP or slot.busy for slot in self._slots):
            self._to_prune = False
            keep = [slot.ref for slot in self._slots]
            await asyncio.to_thread(prune, self._settings.cache_dir, keep, self._settings.spare_copies)

    def _supersede(self, desired: Desired) -> None:
        """Give up loading what the channel no longer names, unless calls may still need it."""
        for slot in self._slots:
            kept = desired.names(slot.member) or slot.proved or slot.stands_in
            if slot.state in BRINGING_UP and not kept:
                self._lift.down(slot)
                slot.move(SlotState.RETIRED, "superseded")
                self._metrics.swaps.labels("superseded").inc()

    def _restart_broken(self) -> None:
        """Start the server of a version again that died; until it is ready, the version takes no calls."""
        for slot in self._slots:
            failure = slot.server.failure() if slot.server is not None and slot.state in SERVING else None
            if failure is not None:
                _log.error("%s: %s; starting its server again", slot.ref, failure)
                self._metrics.server_failures.labels(failure.end.value).inc()
                slot.failures = slot.failures + 1 if time.time() - slot.since < _STABLE_SECONDS else 1
                slot.move(SlotState.STAGING, str(failure))
                self._lift.up(slot)

    async def _drop_released(self, desired: Desired) -> None:
        """Drop what is no longer named, once no gateway needs it and it has been quiet for a while.

        Another version must be active, not necessarily the named one: that may be waiting for this place.
        """
        if self._versions.active() is None:
            return
        for slot in self._slots:
            # Its server died while it drained, or it was to stand in until the named one came, which was quicker.
            again = (slot.proved or slot.stands_in) and slot.state in BRINGING_UP
            if not (again or slot.state is SlotState.DRAINING) or self._versions.keeps(desired, slot):
                continue
            held = await self._leases.holder(slot.member, slot.generation, slot.releases)
            if held is None and slot.shared:
                held = await self._places.lingers(slot)
            if held is None and not self._quiet(slot):
                held = "calls are running, or were a moment ago"
            if held is None:
                self._lift.down(slot)
            elif not again:
                slot.move(SlotState.DRAINING, held)

    def _quiet(self, slot: VersionSlot) -> bool:
        return slot.quiet_for(self._settings.drain_quiet_seconds)


def _begin(desired: Desired) -> VersionSlot:
    return VersionSlot(desired.member, desired.generation, {desired.release})
