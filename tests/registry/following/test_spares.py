from __future__ import annotations

import os
from pathlib import Path

from acemath_registry import ModelRef
from acemath_registry.durable import exclusive_lock
from acemath_registry.following import prune


def test_the_newest_spare_ones_and_those_in_use_stay(tmp_path: Path) -> None:
    for age, version in enumerate(
        ["s5-00000000000a", "s4-00000000000a", "s3-00000000000a", "s2-00000000000a", "s1-00000000000a"]
    ):
        copy = tmp_path / "pol" / version
        copy.mkdir(parents=True)
        (copy / "model.safetensors").write_bytes(b"x")
        os.utime(copy, (1000 - age, 1000 - age))
    (tmp_path / "pol" / ".s9-a.lock").touch()
    prune(tmp_path, [ModelRef("pol", "s1-00000000000a")], 2)
    assert sorted(path.name for path in (tmp_path / "pol").iterdir()) == [
        ".s9-a.lock",
        "s1-00000000000a",
        "s4-00000000000a",
        "s5-00000000000a",
    ]


def test_nothing_there_is_nothing_to_do(tmp_path: Path) -> None:
    prune(tmp_path / "absent", (), 0)
    assert not (tmp_path / "absent").exists()


def test_half_a_copy_goes_when_its_maker_is_dead(tmp_path: Path) -> None:
    """A service that is killed while it copies, and is told of another version when it comes back."""
    folder = tmp_path / "pol"
    dead, living = (folder / f".s{step}-00000000000a.partial-{'b' * 32}" for step in (1, 2))
    origin = dead.with_name(f"{dead.name}-origin")  # of an adapter version that lies in a bucket
    for path in (dead, living, origin):
        path.mkdir(parents=True)
    with exclusive_lock(folder / ".s2-00000000000a.lock"):
        prune(tmp_path, [], 2)
    assert sorted(path.name for path in folder.iterdir()) == [".s2-00000000000a.lock", living.name]
