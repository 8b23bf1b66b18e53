"""One version's way up to ready (or rejected) and down to retired, each as a task of its slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_policy.canary import Canary, CanaryMismatch, check_prompts
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.server import Launcher, ServerDied
from acemath_policy.settings import PolicySettings
from acemath_policy.slots import VersionSlot
from acemath_policy.vllm_server import VllmFailure
from acemath_registry import Registry, VerificationError
from acemath_registry.following import Lifting, Patience, copied, prune

_log = logging.getLogger(__name__)
_BAD = (VerificationError, CanaryMismatch)
_TRANSIENT = (ServerDied, VllmFailure, ServiceError)


class Lift(Lifting[VersionSlot]):
    """Brings versions up and takes them down.

    Args:
        settings: the agent's.
        registry: where versions are copied from.
        launcher: makes vLLM servers.
        metrics: the agent's instruments.
        slots: every version that lives now; the list itself, which its owner changes.
    """

    def __init__(
        self,
        settings: PolicySettings,
        registry: Registry,
        launcher: Launcher,
        metrics: PolicyMetrics,
        slots: Sequence[VersionSlot],
    ) -> None:
        super().__init__(
            Patience(settings.start_attempts, settings.restart_backoff_max_seconds, _BAD, _TRANSIENT),
            slots,
            registry=registry,
            replica=f"policy/{settings.instance}",
            on_rejected=metrics.swaps.labels("rejected").inc,
            on_phase=lambda phase, seconds: metrics.phase_seconds.labels(phase).observe(seconds),
        )
        self._settings, self._launcher, self._slots = settings, launcher, slots

    def down(self, slot: VersionSlot, reason: str | None, *, at_once: bool) -> None:
        """Begin to stop a version; unless at once, its server finishes what it has."""
        earlier, slot.stopping = slot.work, True
        slot.work = asyncio.create_task(self._stop(slot, earlier, reason, at_once))

    def _dispensable(self, version: VersionSlot) -> bool:
        return not version.proved and super()._dispensable(version)

    async def _attempt(self, slot: VersionSlot) -> None:
        """From verifying, or after a crash from staging, to ready."""
        if slot.model is None:
            slot.move(SlotState.VERIFYING, slot.reason)
            with self._timed("verify"):
                slot.model = await copied(self._registry, slot.member, self._copies)
        canary = await asyncio.to_thread(self._canary, slot, slot.model)
        await self._until_placed(slot)
        slot.move(SlotState.STAGING, slot.reason)
        taken = {other.server.port for other in self._slots if other.server is not None}
        slot.server = self._launcher.make(slot.ref, slot.model, taken)
        with self._timed("stage"):
            await slot.server.start()
        slot.move(SlotState.WARMING, slot.reason)
        with self._timed("warm"):
            await slot.server.warm(canary)
        slot.proved = True
        slot.move(SlotState.READY)

    def _canary(self, slot: VersionSlot, model: Path) -> Canary | None:
        """The manifest's, once the version's tokenizer and template agree with it: before a server is started."""
        document = self._registry.manifest(slot.ref, model, manifest_sha256=slot.member.manifest_sha256).canary
        if document is None:
            _log.warning("%s has no canary: nothing shows that the engine serves what was trained", str(slot.ref))
            return None
        canary = Canary.of(document)
        check_prompts(canary, model)
        return canary

    @property
    def _copies(self) -> Path:
        return self._settings.cache_dir / "models"

    async def _make_space(self) -> None:
        await asyncio.to_thread(prune, self._copies, [slot.ref for slot in self._slots], 0)

    async def _let_go(self, slot: VersionSlot) -> None:
        if slot.server is not None:
            await slot.server.kill()
            slot.server = None  # only now: a cancelled task leaves it for the one that comes after

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
