import os
from pathlib import Path

import pytest

from acemath_registry import InvalidRequest, NotFound, Registry, StorageError, VerificationError


def test_each_instance_writes_its_own(registry: Registry) -> None:
    assert registry.statuses("policy") == {}
    registry.write_status("policy", "host-1.0", {"slots": []})
    registry.write_status("policy", "host-1.0", {"slots": [{"version": "a", "state": "ready"}]})
    registry.write_status("policy", "host-2.0", {"slots": []})
    assert registry.read_status("policy", "host-1.0") == {"slots": [{"version": "a", "state": "ready"}]}
    assert list(registry.statuses("policy")) == ["host-1.0", "host-2.0"]
    assert sorted(path.name for path in (registry.root / "status" / "policy").iterdir()) == [
        "host-1.0.json",
        "host-2.0.json",
    ]


def test_what_is_not_there_or_not_json(registry: Registry) -> None:
    with pytest.raises(NotFound, match="policy/0"):
        registry.read_status("policy", "0")
    with pytest.raises(InvalidRequest):
        registry.write_status("policy", "../0", {})
    for document in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(InvalidRequest, match="not JSON"):
            registry.write_status("policy", "0", document)
    registry.write_status("policy", "0", {})
    (registry.root / "status" / "policy" / "0.json").write_text("{")
    with pytest.raises(VerificationError):
        registry.read_status("policy", "0")


def test_a_mount_that_can_not_be_written(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        registry.write_status("policy", "0", {})
