from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import torch
from reward.live_world import Service, services
from reward.publishing import publish_reward
from reward.replica import Exports, Replica, make_exports
from reward.tiny import write_checkpoint
from reward.world import S, World

from acemath_registry import Registry
from acemath_registry.following import SwapStrategy
from acemath_reward.engine.device import place
from acemath_reward.engine.model import load_engine


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other; the bits are the same, see test_invariance."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _fast_disk() -> Iterator[None]:
    """Leave fsync out: nothing here is about power cuts, and it is most of the time on a busy disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def strategy() -> SwapStrategy:
    """Of swaps; tests that hold for both are parametrised by it."""
    return SwapStrategy.AVAILABILITY_PRESERVING


@pytest.fixture
async def world(registry: Registry, tmp_path: Path, strategy: SwapStrategy) -> AsyncIterator[World]:
    made = World(registry, tmp_path, strategy=strategy)
    yield made
    made.loading.set()
    await asyncio.to_thread(made.batcher.close)
    await made.reconciler.close()
    made.service.close()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return make_exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture
async def replica(world: World, exports: Exports) -> Replica:
    """It serves the first export."""
    world.make = lambda directory: load_engine(directory, place("cpu", "bfloat16", threads=1))
    made = Replica(world, exports, publish_reward(world.registry, exports.first))
    world.promote(made.first)
    await made.until(made.first, S.ACTIVE)
    made.bits = await made.scores()
    return made


@pytest.fixture
def start(tmp_path: Path, registry: Registry, llama: Path) -> Iterator[Callable[..., Service]]:
    """Starts the service over a model of microseconds."""
    with services(tmp_path, registry, llama) as start_service:
        yield start_service


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start()
