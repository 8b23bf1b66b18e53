"""Put a reward checkpoint on a channel, beside a policy that nobody loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.tiny import write_checkpoint

from acemath_registry import ModelRef, PublishMetadata, Registry


def publish_reward(
    registry: Registry, directory: Path, *, canary: dict[str, Any] | None = None, step: int = 0
) -> ModelRef:
    metadata = PublishMetadata(step=step, licence="Apache-2.0", canary=canary)
    return registry.publish(directory, name="rew", kind="reward", metadata=metadata)


def promote(registry: Registry, reward: ModelRef, scratch: Path) -> str:
    """Point the channel `default` at a release with this reward version; gives the release's id."""
    release = registry.create_release(_policy(registry, reward, scratch), reward)
    registry.promote("default", release.id, expected_generation=None, by="test")
    return release.id


def _policy(registry: Registry, reward: ModelRef, scratch: Path) -> ModelRef:
    content = reward.version.partition("-")[2]
    directory = scratch / f"policy-of-{content}"
    if not directory.exists():
        write_checkpoint(directory, mark=content)
    metadata = PublishMetadata(step=0, licence="Apache-2.0")
    return registry.publish(directory, name="pol", kind="policy", metadata=metadata)
