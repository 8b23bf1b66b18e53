"""The loop that makes what is loaded equal to what the channel names.

Level-triggered, as the policy agent's: every round looks at the channel and the leases as they are now and takes the
next step. A bad checkpoint changes nothing but a status line.

    verifying -> staging -> warming -> ready -> active -> draining -> retired
        +-----------+----------+-> rejected         +<-------+ rollback while draining

At most two versions are in memory; a third waits, also for a load that was given up and goes on in its thread. Of
several promotions in a row only the last is brought up. Which one goes where both places are taken is
`acemath_registry.following.places`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from acemath_core.errors import Conflict, ErrorCode, Unavailable
from acemath_core.wire import Slot, SlotState
from acemath_registry import ModelKind, Registry
from acemath_registry.following import SETTLE_SECONDS, ChannelFollower, Desired, Leases, Places, StatusFile, prune
from acemath_reward.batcher import Batcher
from acemath_reward.lifting import Lift
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader
from acemath_reward.pulse import EnginePulse
from acemath_reward.settings import RewardSettings
from acemath_reward.versions import BRINGING_UP, ENDED, SERVING, VersionSlot
from acemath_web.health import Readiness

_log = logging.getLogger(__name__)
MAX_VERSIONS = 2
_HISTORY = 8  # ended versions that are still shown


class Reconciler:
    """Loads versions, switches, drains and drops them.

    Args:
        settings: the service's.
        registry: models, channels and status files.
        load_model: makes a model of a directory.
        batcher: its thread runs the checks of a new version.
        leases: who still uses an old version.
        metrics: the service's instruments.
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
        self._pulse = EnginePulse(batcher, settings.stuck_seconds)
        self._slots: list[VersionSlot] = []
        self._lift = Lift(settings, registry, load_model, batcher, metrics, self._slots)
        self._places: Places[VersionSlot] = Places(leases, metrics.swap_waiting.set, settle_seconds)
        self._ended: deque[VersionSlot] = deque(maxlen=_HISTORY)
        self._shown: VersionSlot | None = None  # whose figures `model_info` shows

    # ------------------------------------------------------------------------------------------------ what others see

    def slots(self) -> list[Slot]:
        """Every version, the newest last; ended ones first."""
        stuck = self._pulse.problem()
        return [slot.wire(stuck) for slot in (*self._ended, *self._slots)]

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
        if not serving and version is None:
            raise Unavailable(
                f"no version is loaded: {self._why_nothing_serves()}", code=ErrorCode.NOT_READY, retry_after=2
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
        if any(slot.state is SlotState.ACTIVE for slot in self._slots):
            return Readiness(True, details=details)
        return Readiness(False, self._why_nothing_serves(), details)

    def _why_nothing_serves(self) -> str:
        desired = self._reader.desired
        if desired is None:
            return self._reader.problem or "the channel has not been read yet"
        slot = self._find(desired)
        if slot is None:
            return self._places.waiting or f"{desired.member.ref} waits for a place"
        return f"{slot.ref} is {slot.state.value}" + (f": {slot.reason}" if slot.reason else "")

    # ----------------------------------------------------------------------------------------------------- the rounds

    async def run(self) -> None:
        """Do rounds until cancelled."""
        while True:
            try:
                await self.round()
            except Exception:
                _log.exception("a round failed; the next one starts afresh")
            await asyncio.sleep(self._settings.poll_seconds)

    async def round(self) -> None:
        """One look at everything, and the next step."""
        self._pulse.beat()
        desired = await self._reader.read()
        if self._forget_ended(desired):
            await self._prune_copies()
        if desired is not None:
            self._note_wanted(desired)
            self._supersede(desired)
            self._switch(desired)
            await self._drop_released(desired)
            await self._bring_up_wanted(desired)
        self._metrics.set_versions(slot.state for slot in (*self._ended, *self._slots))
        self._show_active()
        await self._write_status(desired)

    def _show_active(self) -> None:
        active = next((slot for slot in self._slots if slot.state is SlotState.ACTIVE), None)
        if active is None or active.served is None or active is self._shown:
            return
        facts, self._shown = active.served.engine.model.facts(), active
        self._metrics.model_info.clear()
        self._metrics.model_info.labels(str(active.ref), str(facts.get("dtype")), str(facts.get("device"))).set(1)
        self._metrics.invariant.set(active.served.check.batch_invariant)

    async def _write_status(self, desired: Desired | None) -> None:
        generation = desired.generation if desired else None
        slots = [slot.model_dump(mode="json") for slot in self.slots()]
        document = {"generation": generation, "ready": self.readiness().ready, "slots": slots}
        await self._status.write(document | {"waiting": self._places.waiting})

    async def close(self) -> None:
        """Wait for what is being loaded (a load cannot be broken off), and let go of every version."""
        works = [slot.work for slot in self._slots if slot.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, self._pulse.close(), return_exceptions=True)
        self._slots.clear()

    def _find(self, desired: Desired) -> VersionSlot | None:
        return next((slot for slot in self._slots if slot.member == desired.member), None)

    def _forget_ended(self, desired: Desired | None) -> bool:
        """Move ended versions to the history; a rejected one stays until the channel's generation changes."""
        before = len(self._slots)
        for slot in [slot for slot in self._slots if slot.state in ENDED and not slot.busy]:
            current = desired is not None and slot.member == desired.member and slot.generation == desired.generation
            if slot.state is SlotState.RETIRED or not current:
                self._slots.remove(slot)
                self._ended.append(slot)
        return len(self._slots) != before

    async def _prune_copies(self) -> None:
        if not any(slot.state in BRINGING_UP or slot.busy for slot in self._slots):
            keep = [slot.ref for slot in self._slots]
            await asyncio.to_thread(prune, self._settings.cache_dir, keep, self._settings.spare_copies)

    def _note_wanted(self, desired: Desired) -> None:
        slot = self._find(desired)
        if slot is not None and slot.state is not SlotState.REJECTED:
            slot.generation = desired.generation
            slot.releases.add(desired.release)

    def _supersede(self, desired: Desired) -> None:
        """Give up loading what the channel no longer names."""
        for slot in self._slots:
            if slot.state in BRINGING_UP and slot.member != desired.member and slot.work is not None:
                slot.work.cancel()
                slot.move(SlotState.RETIRED, "superseded")
                self._metrics.swaps.labels("superseded").inc()

    def _switch(self, desired: Desired) -> None:
        """READY becomes ACTIVE when the channel names it; then, and only then, the others drain."""
        wanted = self._find(desired)
        if wanted is None or wanted.state not in SERVING or wanted.served is None:
            return
        if wanted.state is not SlotState.ACTIVE:
            wanted.move(SlotState.ACTIVE)
            self._metrics.swaps.labels("activated").inc()
        for slot in self._slots:
            if slot is not wanted and slot.state in (SlotState.READY, SlotState.ACTIVE):
                slot.move(SlotState.DRAINING)

    async def _drop_released(self, desired: Desired) -> None:
        """Drop what is no longer named, once no gateway needs it and it has been quiet for a while.

        Another version must be active, not necessarily the named one: that may be waiting for this place.
        """
        if not any(slot.state is SlotState.ACTIVE for slot in self._slots):
            return
        for slot in self._slots:
            if slot.state is not SlotState.DRAINING or slot is self._find(desired):
                continue
            held = await self._leases.holder(slot.member, slot.generation, slot.releases)
            if held is None and not self._quiet(slot):
                held = "calls are running, or were a moment ago"
            if held is None:
                self._drop(slot)
            else:
                slot.move(SlotState.DRAINING, held)

    async def _bring_up_wanted(self, desired: Desired) -> None:
        """Bring up what is named; where no place is free, one that no gateway ever used may have to go."""
        living = [slot for slot in self._slots if slot.state not in ENDED or slot.busy]
        if self._find(desired) is not None or len(living) < MAX_VERSIONS:
            self._places.nobody_waits()
            if self._find(desired) is None:
                slot = VersionSlot(desired.member, desired.generation, {desired.release})
                self._slots.append(slot)
                self._lift.up(slot)
            return
        unused = await self._places.make_room(desired.member.ref, living, self._quiet)
        if unused is not None:
            self._drop(unused)

    def _quiet(self, slot: VersionSlot) -> bool:
        return slot.quiet_for(self._settings.drain_quiet_seconds)

    def _drop(self, slot: VersionSlot) -> None:
        slot.served = None
        slot.move(SlotState.RETIRED)
