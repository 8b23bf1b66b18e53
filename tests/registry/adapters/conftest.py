from pathlib import Path

import pytest
from registry.adapters.tiny import publish_base, publish_on, write_adapter

from acemath_registry import ModelRef, Registry


@pytest.fixture
def base(registry: Registry, tmp_path: Path) -> ModelRef:
    return publish_base(registry, tmp_path / "base")


@pytest.fixture
def adapter(registry: Registry, base: ModelRef, tmp_path: Path) -> ModelRef:
    return publish_on(registry, write_adapter(tmp_path / "adapter"), base)
