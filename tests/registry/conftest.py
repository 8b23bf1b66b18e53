from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.tiny import METADATA, SMALL, Tensors, write_checkpoint

from acemath_registry import ModelRef, Registry


@pytest.fixture(autouse=True)
def _fast_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave fsync out where only a power cut could tell: it is nine tenths of the time on a busy disk."""
    if request.module.__name__.rpartition(".")[2] not in {"test_durable", "test_cli"}:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    made = 0

    def make(kind: str = "policy", tensors: Tensors = SMALL, **options: Any) -> Path:
        nonlocal made
        made += 1
        return write_checkpoint(tmp_path / f"export-{made}", kind, tensors, **options)

    return make


@pytest.fixture
def policy(registry: Registry, make_checkpoint: Callable[..., Path]) -> ModelRef:
    return registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)


@pytest.fixture
def reward(registry: Registry, make_checkpoint: Callable[..., Path]) -> ModelRef:
    return registry.publish(make_checkpoint("reward"), name="rew", kind="reward", metadata=METADATA)
