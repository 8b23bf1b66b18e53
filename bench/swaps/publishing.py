"""A benchmark's two checkpoints, and how one is published; knows the registry only, and is imported at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acemath_registry import ModelRef, PublishMetadata, Registry

NAMES = {"policy": "bench-swaps-policy", "reward": "bench-swaps-reward"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A release's two checkpoints, not yet published.

    Attributes:
        number: of the release, and the step of its versions.
        policy: directory.
        reward: directory.
        letter: which the policy writes.
        scores: by the reward model, of that policy's text, for each of `PROBLEMS`.
    """

    number: int
    policy: Path
    reward: Path
    letter: str
    scores: tuple[float, ...]


def publish(registry: Registry, kind: str, directory: Path, number: int) -> ModelRef:
    """Publish one checkpoint under the benchmark's own name; `number` is its step."""
    metadata = PublishMetadata(step=number, licence="Apache-2.0")
    return registry.publish(directory, name=NAMES[kind], kind=kind, metadata=metadata, by="bench.swaps")
