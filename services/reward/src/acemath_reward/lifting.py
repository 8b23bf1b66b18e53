"""One version's way from verifying to ready, or to rejected, as a task of its slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_prompts import TemplateError
from acemath_registry import Registry, VerificationError
from acemath_registry.following import Lifting, Patience
from acemath_reward.batcher import Batcher
from acemath_reward.finishing import to_its_end
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader, UnsupportedCheckpoint
from acemath_reward.selfcheck import CanaryMismatch, CheckResult, check, check_prompts
from acemath_reward.settings import RewardSettings
from acemath_reward.tickets import Engine
from acemath_reward.versions import Served, VersionSlot, load

_log = logging.getLogger(__name__)
_BAD = (VerificationError, UnsupportedCheckpoint, TemplateError, CanaryMismatch)


class Lift(Lifting[VersionSlot]):
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
        super().__init__(
            Patience(settings.load_attempts, settings.retry_max_seconds, _BAD, (ServiceError, OSError)),
            slots,
            registry=registry,
            replica=f"reward/{settings.instance}",
            on_rejected=metrics.swaps.labels("rejected").inc,
            on_phase=lambda phase, seconds: metrics.phase_seconds.labels(phase).observe(seconds),
        )
        self._settings, self._load_model, self._batcher = settings, load_model, batcher

    async def _attempt(self, slot: VersionSlot) -> None:
        digest = slot.member.manifest_sha256
        slot.move(SlotState.VERIFYING, slot.reason)
        with self._timed("verify"):
            copy = partial(self._registry.private_copy, slot.ref, self._settings.cache_dir, manifest_sha256=digest)
            directory = await to_its_end(asyncio.to_thread(copy))
            manifest = await asyncio.to_thread(self._registry.manifest, slot.ref, directory, manifest_sha256=digest)
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


def _alone_unless_invariant(engine: Engine, found: CheckResult) -> Engine:
    """Where this device's arithmetic depends on the batch, each candidate gets its own: slow, and still right."""
    if found.batch_invariant:
        return engine
    _log.error("%s: scores depend on their batch on this device; scoring one candidate at a time", engine.version)
    return Engine(engine.version, engine.model, batch_tokens=1)
