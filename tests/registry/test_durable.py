import errno
import os
import threading
from pathlib import Path

import pytest

from acemath_core.errors import ErrorCode
from acemath_registry import DiskFull, LockTimeout, StorageError, durable
from acemath_registry.errors import storage_errors


def test_a_lock_excludes_threads_and_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not durable.is_locked(lock)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with durable.exclusive_lock(lock):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(10)
    assert durable.is_locked(lock)
    with pytest.raises(LockTimeout, match="lock was held") as caught, durable.exclusive_lock(lock, timeout_s=0.05):
        pass
    assert (caught.value.code, caught.value.retry_after) == (ErrorCode.NOT_READY, 0.05)
    leave.set()
    holder.join(10)
    assert not durable.is_locked(lock)
    with durable.exclusive_lock(lock, timeout_s=0.05):
        pass


def test_replace_leaves_the_old_file_and_nothing_else_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pointer.json"
    durable.replace_file(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken disk"):
        durable.replace_file(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer.json"]
    assert path.read_bytes() == b"old"


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.ensure_directory(tmp_path / "a" / "b")
        durable.write_file(tmp_path / "a" / "b" / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o644


def test_a_file_in_the_way_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError):
        durable.ensure_directory(tmp_path / "a")


def test_reading_refuses_links_pipes_and_giants(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert durable.read_file(tmp_path / "file", 5) == b"12345"
    for name, limit in (("file", 4), ("link", 9), ("pipe", 9)):
        with pytest.raises(OSError):
            durable.read_file(tmp_path / name, limit)


def test_a_directory_is_never_renamed_over_another(tmp_path: Path) -> None:
    for name in ("new", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert durable.rename_directory(tmp_path / "new", tmp_path / "there") is False
    assert (tmp_path / "there" / "file").read_text() == "there"
    with pytest.raises(FileNotFoundError):
        durable.rename_directory(tmp_path / "absent", tmp_path / "target")


def test_what_can_not_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    durable.remove_tree(tmp_path / "absent")
    assert not caplog.records
    (tmp_path / "file").write_text("")
    durable.remove_tree(tmp_path / "file")
    assert "could not remove file" in caplog.text


def test_space_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    durable.require_space(tmp_path, 1)
    with pytest.raises(DiskFull, match="free some"):
        durable.require_space(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, StorageError)]
)
def test_os_errors_say_what_we_were_doing(number: int, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError, match="painting") as caught, storage_errors("painting"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind
    assert caught.value.status == 503
    assert isinstance(caught.value.__cause__, OSError)
