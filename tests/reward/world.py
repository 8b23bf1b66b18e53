"""A reward service's loop on a real registry, with models that a test makes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from reward.models import ArithmeticModel
from reward.publishing import promote, publish_reward
from reward.tiny import write_checkpoint

from acemath_core.deadline import Deadline
from acemath_core.wire import ScoreRequest, SlotState
from acemath_registry import ModelRef, Registry
from acemath_registry.following import StatusLeases, SwapStrategy
from acemath_reward.batcher import Batcher, QueueLimits
from acemath_reward.metrics import RewardMetrics
from acemath_reward.ports import RewardModel
from acemath_reward.reconcile import Reconciler
from acemath_reward.scoring import ScoreService
from acemath_reward.settings import RewardSettings

S = SlotState
SETTLE = 0.1  # seconds


class World:
    """A registry and a reconciler whose rounds the test does."""

    def __init__(
        self,
        registry: Registry,
        directory: Path,
        settings: RewardSettings | None = None,
        strategy: SwapStrategy = SwapStrategy.AVAILABILITY_PRESERVING,
    ) -> None:
        self.registry, self.directory = registry, directory
        self.settings = settings or RewardSettings(
            instance="0",
            registry_root=registry.root,
            cache_dir=directory / "cache",
            drain_quiet_seconds=0,
            retry_max_seconds=0.05,
            spare_copies=0,
            stuck_seconds=1.0,
            lost_seconds=60.0,
            swap_strategy=strategy,
        )
        self.figures = CollectorRegistry()
        metrics = RewardMetrics(self.figures)
        self.batcher = Batcher(QueueLimits(10_000, 100), metrics)
        leases = StatusLeases(registry, "default", max_age_seconds=30)
        self.loaded: list[Path] = []
        self.versions: dict[int, ModelRef] = {}
        self.loading = threading.Event()
        self.loading.set()
        self.make: Any = lambda path: ArithmeticModel()
        self.lost: list[str] = []
        self.reconciler = Reconciler(
            self.settings, registry, self._load, self.batcher, leases, metrics, self.lost.append, SETTLE
        )
        self.service = ScoreService(self.settings, self.reconciler, self.batcher, metrics)
        self.batcher.start()

    def _load(self, directory: Path) -> RewardModel:
        self.loaded.append(directory)
        assert self.loading.wait(30)
        model: RewardModel = self.make(directory)
        return model

    def publish(self, seed: int) -> ModelRef:
        """The version of this seed, published once."""
        if seed not in self.versions:
            directory = write_checkpoint(self.directory / f"export-{seed}", "llama", seed)
            self.versions[seed] = publish_reward(self.registry, directory)
        return self.versions[seed]

    def promote(self, reward: ModelRef) -> str:
        return promote(self.registry, reward, self.directory)

    def states(self) -> dict[str, SlotState]:
        return {slot.version: slot.state for slot in self.reconciler.slots()}

    async def until(self, **states: SlotState) -> None:
        """Do rounds until the versions (by seed) are in these states."""
        wanted = {str(self.publish(int(name[1:]))): state for name, state in states.items()}
        await self.rounds(lambda: {version: self.states().get(version) for version in wanted} == wanted)

    async def rounds(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Do rounds until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.reconciler.slots()
            await self.reconciler.round()
            await asyncio.sleep(0.01)

    def gateway(self, generation: int, **more: Any) -> None:
        now = time.time()
        record = {"generation": generation, "leases": {}, "at": now, "viewed": now} | more
        self.registry.write_status("gateway", "g1", record)

    async def score(self, model: str | None = None) -> str:
        request = ScoreRequest(problem="1 + 1?", candidates=["2"], model=model)
        async with self.service.scoring(request, Deadline.after(30)) as scoring:
            assert [item.index async for items in scoring.items() for item in items] == [0]
            return scoring.model
