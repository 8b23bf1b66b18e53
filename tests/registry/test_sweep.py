"""What the dead left in a registry goes with a collection; what the living are at work on stays."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from registry.faults import run_killed_at
from registry.tiny import METADATA

from acemath_registry import ModelRef, Registry
from acemath_registry.collect import Retention
from acemath_registry.durable import exclusive_lock
from acemath_registry.stores.staging import STALE_STAGING_S

EVERYTHING = Retention(newest=1000, age_s=0.0)  # no version goes, and of the dead all that is not too young in any case


def left(registry: Registry) -> list[str]:
    return sorted(path.name for path in (registry.root / "staging").iterdir())


def age(registry: Registry, seconds: float = STALE_STAGING_S + 60.0) -> None:
    """Make everything in `staging` as old."""
    for folder in (registry.root / "staging").iterdir():
        os.utime(folder, (time.time() - seconds, time.time() - seconds))


def collect(registry: Registry, retention: Retention = EVERYTHING, *, apply: bool = True) -> None:
    registry.collect(retention, by="gc", apply=apply)


def test_what_a_killed_publisher_left_goes(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint()
    for step in (12, 22, 32):
        registry = Registry(tmp_path / f"registry-{step}")

        def publish(registry: Registry = registry) -> ModelRef:
            return registry.publish(source, name="pol", kind="policy", metadata=METADATA)

        assert run_killed_at(step, publish) and left(registry)
        collect(registry, apply=False)
        assert left(registry), "a plan removes nothing"
        age(registry)
        collect(registry)
        assert not left(registry)
        assert publish() in registry.versions()


def test_a_living_publishers_folder_and_a_young_one_stay(registry: Registry, policy: ModelRef) -> None:
    staging = registry.root / "staging"
    for name in ("living", "young"):
        (staging / name).mkdir()
    with exclusive_lock(staging / "living" / "publisher.lock"):
        collect(registry)
        age(registry, STALE_STAGING_S - 60.0)
        collect(registry)
        assert left(registry) == ["living", "young"], "on a mount without locks, its publisher may well live"
        age(registry)
        collect(registry, Retention(newest=1000, age_s=2 * STALE_STAGING_S))
        assert left(registry) == ["living", "young"]
        collect(registry)
        assert left(registry) == ["living"]


def test_a_file_that_was_to_replace_another_goes_when_it_is_a_minute_old(registry: Registry, policy: ModelRef) -> None:
    registry.write_status("gateway", "0", {"at": 0.0})
    folder = registry.root / "status" / "gateway"
    old, young, other = (folder / name for name in (f".0.json.{'a' * 32}", f".0.json.{'b' * 32}", ".0.json.lock"))
    for path in (old, young, other):
        path.write_text("{")
    for path in (old, other):
        os.utime(path, (time.time() - 90, time.time() - 90))
    collect(registry, Retention(newest=1000))
    assert old.exists(), "a day has not passed"
    collect(registry)
    assert not old.exists() and young.exists() and other.exists()
    assert registry.read_status("gateway", "0") == {"at": 0.0}


def test_a_registry_without_such_folders(registry: Registry) -> None:
    collect(registry)
    assert not registry.root.exists() or not (registry.root / "staging").exists()
