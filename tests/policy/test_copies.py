from __future__ import annotations

import os
from pathlib import Path

from acemath_policy.copies import prune


def test_the_newest_spare_ones_and_those_in_use_stay(tmp_path: Path) -> None:
    for age, version in enumerate(["s5-a", "s4-a", "s3-a", "s2-a", "s1-a"]):
        copy = tmp_path / "pol" / version
        copy.mkdir(parents=True)
        (copy / "model.safetensors").write_bytes(b"x")
        os.utime(copy, (1000 - age, 1000 - age))
    (tmp_path / "pol" / ".s9-a.lock").touch()
    prune(tmp_path, {tmp_path / "pol" / "s1-a"}, 2)
    assert sorted(path.name for path in (tmp_path / "pol").iterdir()) == [".s9-a.lock", "s1-a", "s4-a", "s5-a"]


def test_nothing_there_is_nothing_to_do(tmp_path: Path) -> None:
    prune(tmp_path / "absent", (), 0)
    assert not (tmp_path / "absent").exists()
