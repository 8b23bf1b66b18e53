import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from registry.faults import run_at_once

from acemath_registry import DiskFull, LockTimeout, ModelRef, NotFound, Registry, RejectReason, VerificationError
from acemath_registry.cache import private_copy
from acemath_registry.durable import exclusive_lock


def test_a_copy_is_made_once_and_is_private(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    directory = registry.private_copy(policy, tmp_path / "cache")
    assert directory == tmp_path / "cache" / policy.name / policy.version
    registry.verify(policy, directory)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700
    inode = (directory / "model.safetensors").stat().st_ino
    assert registry.private_copy(policy, tmp_path / "cache") == directory
    assert (directory / "model.safetensors").stat().st_ino == inode


def test_the_copy_outlives_its_source(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    directory = registry.private_copy(policy, tmp_path / "cache")
    (registry.path(policy) / "model.safetensors").write_bytes(b"overwritten in place")
    registry.verify(policy, directory)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_damaged_copy_is_made_again(
    registry: Registry, policy: ModelRef, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    directory = registry.private_copy(policy, tmp_path / "cache")
    (directory / name).write_bytes(b"bit rot")
    with caplog.at_level(logging.WARNING):
        registry.private_copy(policy, tmp_path / "cache")
    assert "damaged" in caplog.text
    registry.verify(policy, directory)


def test_a_damaged_source_leaves_nothing(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    os.truncate(registry.path(policy) / "model.safetensors", 130)
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(policy, tmp_path / "cache")
    assert caught.value.reason is RejectReason.TRUNCATED
    assert [path.name for path in (tmp_path / "cache" / policy.name).iterdir()] == [f".{policy.version}.lock"]


def test_a_link_in_the_source_is_not_followed(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    path = registry.path(policy) / "config.json"
    path.rename(tmp_path / "config.json")
    path.symlink_to(tmp_path / "config.json")
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(policy, tmp_path / "cache")
    assert caught.value.reason is RejectReason.SYMLINK


def test_a_file_more_in_the_source_is_refused(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    (registry.path(policy) / "evil.bin").write_bytes(b"\x80")
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(policy, tmp_path / "cache")
    assert caught.value.reason is RejectReason.PICKLE


def test_the_signature_comes_along(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    (registry.path(policy) / "model.sig").write_text("{}")
    assert (registry.private_copy(policy, tmp_path / "cache") / "model.sig").read_text() == "{}"


def test_another_manifest_than_the_released_one(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(policy, tmp_path / "cache", manifest_sha256="0" * 64)
    assert caught.value.reason is RejectReason.MANIFEST_EDITED


def test_no_such_version(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        registry.private_copy(ModelRef("pol", "s1-0123456789ab"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_leaves_nothing(
    registry: Registry, policy: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(DiskFull, match="are needed"):
        registry.private_copy(policy, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / policy.name).iterdir()] == [f".{policy.version}.lock"]


def test_copiers_at_once(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    results = run_at_once(5, lambda number: registry.private_copy(policy, tmp_path / "cache"))
    assert set(results) == {str(tmp_path / "cache" / policy.name / policy.version)}


def test_waiting_for_another_copier_has_a_deadline(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / policy.name
    folder.mkdir(parents=True)
    with exclusive_lock(folder / f".{policy.version}.lock"), pytest.raises(LockTimeout):
        private_copy(policy, registry.path(policy), tmp_path / "cache", lock_timeout_s=0.05)


def test_progress_can_cancel(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        registry.private_copy(policy, tmp_path / "cache", progress=stop)
    assert [path.name for path in (tmp_path / "cache" / policy.name).iterdir()] == [f".{policy.version}.lock"]
