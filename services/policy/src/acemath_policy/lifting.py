"""One version's way up to ready (or rejected) and down to retired, each as a task of its slot."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_policy.canary import Canary, CanaryMismatch, check_prompts
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.server import Launcher, ServerDied
from acemath_policy.settings import PolicySettings
from acemath_policy.slots import SERVING, VersionSlot
from acemath_policy.vllm_server import VllmFailure
from acemath_registry import Registry, VerificationError

_log = logging.getLogger(__name__)


class Lift:
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
        self._settings, self._registry, self._launcher = settings, registry, launcher
        self._metrics, self._slots = metrics, slots

    def up(self, slot: VersionSlot) -> None:
        """Begin to bring a version up: from verifying, or after a crash from staging."""
        slot.work = asyncio.create_task(self._bring_up(slot))

    def down(self, slot: VersionSlot, reason: str | None, *, at_once: bool) -> None:
        """Begin to stop a version; unless at once, its server finishes what it has."""
        earlier, slot.stopping = slot.work, True
        slot.work = asyncio.create_task(self._stop(slot, earlier, reason, at_once))

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
        canary = await asyncio.to_thread(self._canary, slot, slot.model)
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
        document = self._registry.manifest(slot.ref, manifest_sha256=slot.member.manifest_sha256).canary
        if document is None:
            return None
        canary = Canary.of(document)
        check_prompts(canary, model)
        return canary

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
