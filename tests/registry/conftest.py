from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.tiny import METADATA, SMALL, Tensors, write_checkpoint

from acemath_registry import ModelRef, Registry


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
