from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from reward.tiny import write_checkpoint

from acemath_registry import ModelRef, PublishMetadata, Registry


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other; the bits are the same, see test_invariance."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Registry(tmp_path / "registry")


@pytest.fixture
def promote(registry: Registry, tmp_path: Path) -> Callable[..., ModelRef]:
    """Publish a reward checkpoint beside a policy that nobody loads, and put the channel on the pair."""
    made = 0

    def promote_checkpoint(directory: Path, *, canary: dict[str, object] | None = None, step: int = 0) -> ModelRef:
        nonlocal made
        made += 1
        metadata = PublishMetadata(step=step, licence="Apache-2.0", canary=canary)
        reward = registry.publish(directory, name="rew", kind="reward", metadata=metadata)
        policy = registry.publish(
            _policy(directory, tmp_path / f"policy-{made}"), name="pol", kind="policy", metadata=metadata
        )
        release = registry.create_release(policy, reward)
        registry.promote("default", release.id, expected_generation=None, by="test")
        return reward

    return promote_checkpoint


def _policy(reward: Path, directory: Path) -> Path:
    directory.mkdir()
    for file in reward.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = directory / "config.json"
    config.write_text(config.read_text().replace("ForSequenceClassification", "ForCausalLM"))
    return directory
