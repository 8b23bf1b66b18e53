"""One version's way from verifying to ready, or to rejected, as a task of its slot."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_prompts import TemplateError
from acemath_registry import Registry, VerificationError
from acemath_reward.batcher import Batcher
from acemath_reward.finishing import to_its_end
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader, UnsupportedCheckpoint
from acemath_reward.selfcheck import CanaryMismatch, CheckResult, check, check_prompts
from acemath_reward.settings import RewardSettings
from acemath_reward.tickets import Engine
from acemath_reward.versions import SERVING, Served, VersionSlot, load

_log = logging.getLogger(__name__)
_BAD = (VerificationError, UnsupportedCheckpoint, TemplateError, CanaryMismatch)


class Lift:
    """Loads and checks versions.

    Args:
        settings: the service's.
        registry: where versions are copied from.
        load_model: makes a model of a directory.
        batcher: its thread runs the checks of a new version.
        metrics: the service's instruments.
        slots: every version that lives now; the list itself, which its owner changes.
    """

    def __init__(
        self,
        settings: RewardSettings,
        registry: Registry,
        load_model: ModelLoader,
        batcher: Batcher,
        metrics: RewardMetrics,
        slots: Sequence[VersionSlot],
    ) -> None:
        self._settings, self._registry, self._load_model = settings, registry, load_model
        self._batcher, self._metrics, self._slots = batcher, metrics, slots

    def up(self, slot: VersionSlot) -> None:
        """Begin to bring a version up."""
        slot.work = asyncio.create_task(self._bring_up(slot))

    async def _bring_up(self, slot: VersionSlot) -> None:
        """From verifying to ready; or to rejected."""
        while True:
            try:
                await self._try_bring_up(slot)
                return
            except _BAD as error:
                self._reject(slot, str(error))
                return
            except (ServiceError, OSError) as error:
                slot.failures += 1
                slot.move(slot.state, str(error))
                _log.warning("%s: attempt %d failed: %s", slot.ref, slot.failures, error)
                if slot.failures >= self._settings.load_attempts and self._another_serves(slot):
                    self._reject(slot, str(error))
                    return
            except Exception as error:
                _log.exception("%s: loading it failed", slot.ref)
                self._reject(slot, f"{type(error).__name__}; see the service's log")
                return
            await asyncio.sleep(min(2.0 ** (slot.failures - 1), self._settings.retry_max_seconds))

    def _another_serves(self, slot: VersionSlot) -> bool:
        return any(other.state in SERVING for other in self._slots if other is not slot)

    async def _try_bring_up(self, slot: VersionSlot) -> None:
        digest = slot.member.manifest_sha256
        slot.move(SlotState.VERIFYING, slot.reason)
        with self._timed("verify"):
            copy = partial(self._registry.private_copy, slot.ref, self._settings.cache_dir, manifest_sha256=digest)
            directory = await to_its_end(asyncio.to_thread(copy))
            manifest = await asyncio.to_thread(self._registry.manifest, slot.ref, manifest_sha256=digest)
        slot.move(SlotState.STAGING, slot.reason)
        with self._timed("stage"):
            load_it = partial(load, directory, str(slot.ref), self._load_model, self._settings.batch_tokens)
            engine, vocabulary = await to_its_end(asyncio.to_thread(load_it))
        slot.move(SlotState.WARMING, slot.reason)
        await asyncio.to_thread(check_prompts, vocabulary.encoder, manifest.canary)
        with self._timed("warm"):
            checking = check(engine.model, manifest.canary, self._settings.canary_tolerance, self._batcher.call)
            found = await to_its_end(checking, alive=lambda: self._batcher.alive)
        slot.served = Served(_alone_unless_invariant(engine, found), vocabulary, found)
        slot.move(SlotState.READY)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield  # a failed phase is not a duration
        self._metrics.phase_seconds.labels(phase).observe(time.monotonic() - started)

    def _reject(self, slot: VersionSlot, reason: str) -> None:
        slot.move(SlotState.REJECTED, reason)
        self._metrics.swaps.labels("rejected").inc()
        _log.error("%s is rejected: %s", slot.ref, reason)


def _alone_unless_invariant(engine: Engine, found: CheckResult) -> Engine:
    """Where this device's arithmetic depends on the batch, each candidate gets its own: slow, and still right."""
    if found.batch_invariant:
        return engine
    _log.error("%s: scores depend on their batch on this device; scoring one candidate at a time", engine.version)
    return Engine(engine.version, engine.model, batch_tokens=1)
