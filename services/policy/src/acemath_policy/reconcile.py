"""The loop that makes what runs equal to what the channel names.

Level-triggered: every round looks at the channel, at the processes and at the leases as they are now, and takes the
next step; nothing depends on having seen an event. A bad checkpoint changes nothing but a status line.

    verifying -> staging -> warming -> ready -> active -> draining -> retired
        +-----------+----------+-> rejected         +<-------+ rollback while draining

At most two servers run: the one that serves and the one that comes. Of several promotions in a row only the last is
brought up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from acemath_core.errors import ServiceError
from acemath_core.wire import Slot, SlotState
from acemath_policy.canary import CanaryMismatch
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.server import Launcher, ServerDied
from acemath_policy.settings import PolicySettings
from acemath_policy.slots import BRINGING_UP, ENDED, SERVING, VersionSlot
from acemath_policy.vllm_server import VllmFailure
from acemath_registry import ModelKind, Registry, VerificationError
from acemath_registry.following import ChannelFollower, Desired, Leases, StatusFile, prune
from acemath_web.health import Readiness

_log = logging.getLogger(__name__)
MAX_SERVERS = 2
_HISTORY = 8  # ended versions that are still shown
_STABLE_SECONDS = 300.0  # after which an earlier failure is forgotten


class Reconciler:
    """Brings versions up, switches, drains and stops them.

    Args:
        settings: the agent's.
        registry: models, channels and status files.
        launcher: makes vLLM servers.
        leases: who still uses an old version.
        metrics: the agent's instruments.
    """

    def __init__(
        self, settings: PolicySettings, registry: Registry, launcher: Launcher, leases: Leases, metrics: PolicyMetrics
    ) -> None:
        self._settings, self._registry, self._launcher = settings, registry, launcher
        self._leases, self._metrics = leases, metrics
        self._reader = ChannelFollower(
            registry,
            settings.channel,
            ModelKind.POLICY,
            on_generation=metrics.generation.set,
            on_error=metrics.registry_errors.labels("channel").inc,
        )
        self._slots: list[VersionSlot] = []
        self._ended: deque[VersionSlot] = deque(maxlen=_HISTORY)
        self._status = StatusFile(registry, "policy", settings.instance, metrics.registry_errors.labels("status").inc)

    # ------------------------------------------------------------------------------------------------ what others see

    def slots(self) -> list[Slot]:
        """Every version, the newest last; ended ones first."""
        return [slot.wire() for slot in (*self._ended, *self._slots)]

    def readiness(self) -> Readiness:
        """Whether the active version makes tokens; from what the last rounds saw, at once."""
        active = next((slot for slot in self._slots if slot.state is SlotState.ACTIVE), None)
        details: dict[str, object] = {"slots": {str(slot.ref): slot.state.value for slot in self._slots}}
        if active is None or active.server is None:
            return Readiness(False, self._why_nothing_serves(), details)
        details |= {"active": str(active.ref), "seconds_since_token": round(active.server.pulse.age(), 1)}
        silence = active.silence()
        return Readiness(silence is None, silence or "", details)

    def _why_nothing_serves(self) -> str:
        desired = self._reader.desired
        if desired is None:
            return self._reader.problem or "the channel has not been read yet"
        slot = self._find(desired)
        if slot is None:
            return f"{desired.member.ref} waits for a place"
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
        desired = await self._reader.read()
        if self._forget_ended(desired):
            await self._prune_copies()
        if desired is not None:
            self._note_wanted(desired)
            self._supersede(desired)
            self._restart_dead()
            self._switch(desired)
            await self._stop_released(desired)
            self._bring_up_wanted(desired)
        self._metrics.set_slots(slot.state for slot in (*self._ended, *self._slots))
        self._metrics.ready.set(self.readiness().ready)
        await self._write_status()

    async def _write_status(self) -> None:
        generation = self._reader.desired.generation if self._reader.desired else None
        slots = [slot.model_dump(mode="json") for slot in self.slots()]
        await self._status.write({"generation": generation, "ready": self.readiness().ready, "slots": slots})

    async def close(self) -> None:
        """Stop every server, finishing what it has."""
        for slot in self._slots:
            if slot.busy and slot.work is not None and not slot.stopping:
                slot.work.cancel()
        await asyncio.gather(*(slot.work for slot in self._slots if slot.work), return_exceptions=True)
        running = [slot.server for slot in self._slots if slot.server is not None and not slot.stopping]
        await asyncio.gather(*(server.stop() for server in running))

    def _find(self, desired: Desired) -> VersionSlot | None:
        return next((slot for slot in self._slots if slot.member == desired.member), None)

    def _forget_ended(self, desired: Desired | None) -> bool:
        """Move ended versions to the history; a rejected one stays until the channel's generation changes."""
        before = len(self._ended), len(self._slots)
        for slot in [slot for slot in self._slots if slot.state in ENDED and not slot.busy]:
            current = desired is not None and slot.member == desired.member and slot.generation == desired.generation
            if slot.state is SlotState.RETIRED or not current:
                self._slots.remove(slot)
                self._ended.append(slot)
        return (len(self._ended), len(self._slots)) != before

    async def _prune_copies(self) -> None:
        if any(slot.state is SlotState.VERIFYING for slot in self._slots):
            return
        in_use = [slot.ref for slot in self._slots if slot.model is not None]
        await asyncio.to_thread(prune, self._settings.cache_dir / "models", in_use, self._settings.spare_copies)

    def _note_wanted(self, desired: Desired) -> None:
        slot = self._find(desired)
        if slot is not None and slot.state is not SlotState.REJECTED:
            slot.generation = desired.generation
            slot.releases.add(desired.release)

    def _supersede(self, desired: Desired) -> None:
        """Give up bringing up what the channel no longer names, unless requests may still need it."""
        for slot in self._slots:
            if slot.state in BRINGING_UP and slot.member != desired.member and not slot.proved and not slot.stopping:
                self._retire(slot, "superseded", at_once=True)
                self._metrics.swaps.labels("superseded").inc()

    def _restart_dead(self) -> None:
        for slot in self._slots:
            cause = slot.server.dead() if slot.server is not None and slot.state in SERVING else None
            if cause is not None and not slot.stopping:
                _log.error("%s: %s; starting it again", slot.ref, cause)
                self._metrics.restarts.inc()
                slot.failures = slot.failures + 1 if time.time() - slot.since < _STABLE_SECONDS else 1
                slot.move(SlotState.STAGING, cause)
                slot.work = asyncio.create_task(self._bring_up(slot))

    def _switch(self, desired: Desired) -> None:
        """READY becomes ACTIVE when the channel names it; then, and only then, the others drain."""
        wanted = self._find(desired)
        if wanted is None or wanted.state not in SERVING or wanted.stopping:
            return
        if wanted.state is not SlotState.ACTIVE:
            wanted.move(SlotState.ACTIVE)
            self._metrics.swaps.labels("activated").inc()
        for slot in self._slots:
            if slot is not wanted and slot.state in (SlotState.READY, SlotState.ACTIVE):
                slot.move(SlotState.DRAINING)

    async def _stop_released(self, desired: Desired) -> None:
        """Stop what is no longer named, once no gateway needs it and it has been quiet for a while.

        One that crashed while it drained is being started again for whoever may still need it; it goes, too. Another
        version must be active, not necessarily the named one: that may be waiting for this place.
        """
        if not any(slot.state is SlotState.ACTIVE for slot in self._slots):
            return
        for slot in self._slots:
            if slot is self._find(desired) or slot.stopping or slot.state in ENDED or slot.state is SlotState.ACTIVE:
                continue
            held = await self._leases.holder(slot.generation, slot.releases)
            running = slot.state is SlotState.DRAINING and slot.server is not None
            if held is None and running and not self._quiet(slot):
                held = "requests are running, or were a moment ago"
            if held is None:
                self._retire(slot, None, at_once=not running)
            elif running:
                slot.move(SlotState.DRAINING, held)

    def _quiet(self, slot: VersionSlot) -> bool:
        return slot.server is not None and slot.server.pulse.quiet_for() >= self._settings.drain_quiet_seconds

    def _bring_up_wanted(self, desired: Desired) -> None:
        living = [slot for slot in self._slots if slot.state not in ENDED or slot.busy]
        if self._find(desired) is None and len(living) < MAX_SERVERS:
            slot = VersionSlot(desired.member, desired.generation, {desired.release})
            self._slots.append(slot)
            slot.work = asyncio.create_task(self._bring_up(slot))

    # -------------------------------------------------------------------------------------------------- one version

    async def _bring_up(self, slot: VersionSlot) -> None:
        """From verifying (or, after a crash, staging) to ready; or to rejected."""
        while True:
            try:
                await self._try_bring_up(slot)
                return
            except (VerificationError, CanaryMismatch) as error:
                await self._reject(slot, str(error))
                return
            except (ServerDied, VllmFailure, ServiceError) as error:
                slot.failures += 1
                slot.move(slot.state, str(error))
                _log.warning("%s: attempt %d failed: %s", slot.ref, slot.failures, error)
                if slot.failures >= self._settings.start_attempts and not slot.proved and self._another_serves(slot):
                    await self._reject(slot, str(error))
                    return
            except Exception as error:
                _log.exception("%s: bringing it up failed", slot.ref)
                await self._reject(slot, f"{type(error).__name__}; see the agent's log")
                return

    def _another_serves(self, slot: VersionSlot) -> bool:
        return any(other.state in SERVING for other in self._slots if other is not slot)

    async def _try_bring_up(self, slot: VersionSlot) -> None:
        await self._drop_server(slot)
        if slot.failures:
            await asyncio.sleep(min(2.0 ** (slot.failures - 1), self._settings.restart_backoff_max_seconds))
        if slot.model is None:
            slot.move(SlotState.VERIFYING, slot.reason)
            with self._timed("verify"):
                slot.model = await asyncio.to_thread(
                    self._registry.private_copy,
                    slot.ref,
                    self._settings.cache_dir / "models",
                    manifest_sha256=slot.member.manifest_sha256,
                )
        slot.move(SlotState.STAGING, slot.reason)
        taken = {other.server.port for other in self._slots if other.server is not None}
        slot.server = self._launcher.make(slot.ref, slot.model, taken)
        with self._timed("stage"):
            await slot.server.start()
        slot.move(SlotState.WARMING, slot.reason)
        manifest = await asyncio.to_thread(
            self._registry.manifest, slot.ref, manifest_sha256=slot.member.manifest_sha256
        )
        with self._timed("warm"):
            await slot.server.warm(manifest.canary)
        slot.proved = True
        slot.move(SlotState.READY)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield  # a failed phase is not a duration
        self._metrics.phase_seconds.labels(phase).observe(time.monotonic() - started)

    async def _drop_server(self, slot: VersionSlot) -> None:
        if slot.server is not None:
            await slot.server.kill()
            slot.server = None  # only now: a cancelled task leaves it for the one that comes after

    async def _reject(self, slot: VersionSlot, reason: str) -> None:
        await self._drop_server(slot)
        slot.move(SlotState.REJECTED, reason)
        self._metrics.swaps.labels("rejected").inc()
        _log.error("%s is rejected: %s", slot.ref, reason)

    def _retire(self, slot: VersionSlot, reason: str | None, *, at_once: bool) -> None:
        earlier, slot.stopping = slot.work, True
        slot.work = asyncio.create_task(self._stop(slot, earlier, reason, at_once))

    async def _stop(
        self, slot: VersionSlot, earlier: asyncio.Task[None] | None, reason: str | None, at_once: bool
    ) -> None:
        if earlier is not None:
            earlier.cancel()
            await asyncio.wait({earlier})
        if slot.server is not None:
            await (slot.server.kill() if at_once else slot.server.stop())
            slot.server = None
        slot.move(SlotState.RETIRED, reason)
