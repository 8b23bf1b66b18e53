"""Where keys are configured, the service uses only what one of them signed; the version that serves goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from registry.damage import Damage, with_manifest
from registry.keys import make_keys
from reward.models import ArithmeticModel
from reward.world import S, World

from acemath_core.settings import SettingsError
from acemath_registry import ModelRef, Registry, SigningKey
from acemath_reward.app import create_app
from acemath_reward.settings import RewardSettings

Keys = tuple[SigningKey, SigningKey]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Ours and theirs."""
    return make_keys(tmp_path)


@pytest.fixture
async def trusting(registry: Registry, tmp_path: Path, keys: Keys) -> AsyncIterator[World]:
    made = World(Registry(registry.root, trusted=keys[0].trusted()), tmp_path)
    yield made
    await asyncio.to_thread(made.batcher.close)
    await made.reconciler.close()
    made.service.close()


def signed(world: World, seed: int, key: SigningKey) -> ModelRef:
    ref = world.publish(seed)
    world.registry.sign(ref, key, by="ann")
    return ref


def faults(ours: SigningKey, theirs: SigningKey, other: ModelRef) -> dict[str, Damage]:
    def by(key: SigningKey, ref: ModelRef | None) -> Damage:
        def damage(directory: Path) -> None:
            of = ref or ModelRef(directory.parent.name, directory.name)
            (directory / "model.sig").write_bytes(key.sign(of, (directory / "manifest.json").read_bytes()))

        return damage

    return {
        "[signature_missing]": lambda d: (d / "model.sig").unlink(),
        "[signature_untrusted]": by(theirs, None),
        "[signature_wrong]": by(ours, other),
        "[signature_malformed]": lambda d: (d / "model.sig").write_text("{}"),
    }


async def test_a_wrong_signature_changes_nothing_and_the_next_good_one_goes_in(trusting: World, keys: Keys) -> None:
    first = signed(trusting, 1, keys[0])
    trusting.promote(first)
    await trusting.until(v1=S.ACTIVE)
    for seed, (reason, damage) in enumerate(faults(*keys, first).items(), 2):
        bad = signed(trusting, seed, keys[0])
        damage(trusting.registry.path(bad))
        trusting.promote(bad)
        await trusting.until(**{f"v{seed}": S.REJECTED, "v1": S.ACTIVE})
        (said,) = [slot.reason for slot in trusting.reconciler.slots() if slot.version == str(bad)]
        assert reason in str(said) and await trusting.score() == str(first)
    last = signed(trusting, 9, keys[0])
    trusting.promote(last)
    await trusting.until(v9=S.ACTIVE)
    assert await trusting.score() == str(last)


async def test_a_manifest_that_is_edited_with_its_release_is_told_by_the_signature(trusting: World, keys: Keys) -> None:
    """Digests alone would not tell: whoever may write the registry can write both anew."""
    bad = signed(trusting, 1, keys[0])
    with_manifest(lambda manifest: manifest.update(canary=None, metrics={"forged": 1}))(trusting.registry.path(bad))
    trusting.promote(bad)
    await trusting.until(v1=S.REJECTED)
    assert "[signature_wrong]" in str(trusting.reconciler.slots()[-1].reason)


def test_keys_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    settings = RewardSettings(registry_root=tmp_path, cache_dir=tmp_path, signature_keys_file=tmp_path / "absent.pub")
    with pytest.raises(SettingsError, match="signature_keys_file: key file"):
        create_app(settings, lambda directory: ArithmeticModel())
