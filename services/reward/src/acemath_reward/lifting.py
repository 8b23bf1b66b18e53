"""One version's way from verifying to ready, or to rejected, as a task of its slot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_core.wire import SlotState
from acemath_prompts import PromptEncoder, TemplateError
from acemath_registry import Manifest, Registry, VerificationError
from acemath_registry.following import Lifting, Patience, copied, prune
from acemath_reward.batcher import Batcher
from acemath_reward.finishing import to_its_end
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import ModelLoader, ModelServer, ServerFailure, UnsupportedCheckpoint
from acemath_reward.selfcheck import CanaryMismatch, CheckResult, check, check_prompts
from acemath_reward.settings import RewardSettings
from acemath_reward.tickets import Engine
from acemath_reward.versions import Served, VersionSlot, load

_log = logging.getLogger(__name__)
_BAD = (VerificationError, UnsupportedCheckpoint, TemplateError, CanaryMismatch)
_TRANSIENT = (ServiceError, ServerFailure, OSError)


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
            Patience(settings.load_attempts, settings.retry_max_seconds, _BAD, _TRANSIENT),
            slots,
            registry=registry,
            replica=f"reward/{settings.instance}",
            on_rejected=metrics.swaps.labels("rejected").inc,
            on_phase=lambda phase, seconds: metrics.phase_seconds.labels(phase).observe(seconds),
        )
        self._settings, self._load_model, self._batcher, self._metrics = settings, load_model, batcher, metrics

    def down(self, slot: VersionSlot) -> None:
        """Let a version go; its place is free when the process that computes it, if there is one, has ended."""
        earlier = slot.work if slot.busy else None
        slot.served = None
        slot.move(SlotState.RETIRED)
        if earlier is not None or slot.server is not None:
            slot.work = asyncio.create_task(self._close(slot, earlier))

    def _dispensable(self, version: VersionSlot) -> bool:
        return not version.proved and super()._dispensable(version)

    async def _attempt(self, slot: VersionSlot) -> None:
        try:
            await self._to_ready(slot)
        except ServerFailure as failure:
            self._metrics.server_failures.labels(failure.end.value).inc()
            raise
        except asyncio.CancelledError:
            await self._let_go(slot)
            raise

    async def _make_space(self) -> None:
        await asyncio.to_thread(prune, self._settings.cache_dir, [slot.ref for slot in self._versions], 0)

    async def _let_go(self, slot: VersionSlot) -> None:
        slot.served = None
        if slot.server is not None:
            await to_its_end(slot.server.close())
            slot.server = None

    async def _close(self, slot: VersionSlot, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            earlier.cancel()
            await asyncio.wait({earlier})
        await self._let_go(slot)

    async def _to_ready(self, slot: VersionSlot) -> None:
        """From verifying, or from staging when its server died, to ready."""
        digest = slot.member.manifest_sha256
        if slot.copy is None or not slot.proved:
            slot.move(SlotState.VERIFYING, slot.reason)
            with self._timed("verify"):
                slot.copy = await copied(self._registry, slot.member, self._settings.cache_dir)
        manifest = await asyncio.to_thread(self._registry.manifest, slot.ref, slot.copy, manifest_sha256=digest)
        if manifest.canary is None:
            _log.warning("%s has no canary: nothing shows that the engine serves what was trained", str(slot.ref))
        if not slot.place.is_set():  # what needs no engine is found before another version makes room
            await asyncio.to_thread(_check_prompts, slot.copy, manifest)
        await self._until_placed(slot)
        slot.move(SlotState.STAGING, slot.reason)
        with self._timed("stage"):
            load_it = partial(load, slot.copy, str(slot.ref), self._load_model, self._settings.batch_tokens)
            engine, vocabulary = await to_its_end(asyncio.to_thread(load_it))
            await _start(slot, engine.model.server)
        slot.move(SlotState.WARMING, slot.reason)
        await asyncio.to_thread(check_prompts, vocabulary.encoder, manifest.canary)
        with self._timed("warm"):
            checking = check(engine.model, manifest.canary, self._settings.canary_tolerance, self._batcher.call)
            found = await to_its_end(checking, alive=lambda: self._batcher.alive)
        slot.served, slot.proved = Served(_alone_unless_invariant(engine, found), vocabulary, found), True
        slot.move(SlotState.READY)


def _check_prompts(copy: Path, manifest: Manifest) -> None:
    check_prompts(PromptEncoder.from_directory(copy), manifest.canary)


async def _start(slot: VersionSlot, server: ModelServer | None) -> None:
    slot.server = server  # before its start: whoever gives the attempt up ends it
    if server is not None:
        await server.start()


def _alone_unless_invariant(engine: Engine, found: CheckResult) -> Engine:
    """Where this device's arithmetic breaks the promise about bits, each candidate has its batch: slow, still right."""
    if found.batch_invariant is not False:
        return engine
    _log.error("%s: scores depend on their batch on this device; scoring one candidate at a time", engine.version)
    return Engine(engine.version, engine.model, batch_tokens=1)
