"""Put a reward checkpoint on a channel, beside a policy that nobody loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from acemath_registry import ModelRef, PublishMetadata, Registry


def publish_reward(
    registry: Registry, directory: Path, *, canary: dict[str, Any] | None = None, step: int = 0
) -> ModelRef:
    metadata = PublishMetadata(step=step, licence="Apache-2.0", canary=canary)
    return registry.publish(directory, name="rew", kind="reward", metadata=metadata)


def promote(registry: Registry, reward: ModelRef, scratch: Path) -> str:
    """Point the channel `default` at a release with this reward version; gives the release's id."""
    whole = reward
    if (registry.path(reward) / "adapter_config.json").exists():  # a policy is made of whole checkpoints
        whole = ModelRef.parse(json.loads((registry.path(reward) / "manifest.json").read_text())["adapter"]["base"])
    release = registry.create_release(_policy(registry, registry.path(whole), scratch), reward)
    registry.promote("default", release.id, expected_generation=None, by="test")
    return release.id


def _policy(registry: Registry, reward: Path, scratch: Path) -> ModelRef:
    directory = scratch / f"policy-of-{reward.name}"
    if not directory.exists():
        ignored = shutil.ignore_patterns("manifest.json")
        shutil.copytree(reward, directory, ignore=ignored)
        config = directory / "config.json"
        config.chmod(0o644)
        text = config.read_text()
        for head in ("ForSequenceClassification", "ForRewardModel"):
            text = text.replace(head, "ForCausalLM")
        config.write_text(text)
    metadata = PublishMetadata(step=0, licence="Apache-2.0")
    return registry.publish(directory, name="pol", kind="policy", metadata=metadata)
