"""Writing to a disk so that a reader sees the whole or nothing, also after a crash.

Every change of the registry on disk is one of these functions. None of them translates `OSError`; the callers say
what they were doing (`errors.storage_errors`).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from acemath_core.deadline import Deadline
from acemath_registry.errors import DiskFull, LockTimeout

_log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 4 * 1024 * 1024
LOCK_TIMEOUT_S: Final = 30.0
_LOCK_POLL_S: Final = 0.01
_RESERVE_BYTES: Final = 64 * 1024 * 1024
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def make_directory(path: Path, mode: int) -> None:
    """Make a new directory with exactly this mode; raises `FileExistsError` when there is one."""
    os.mkdir(path, mode)
    os.chmod(path, mode)  # mkdir's mode is cut by the umask


def ensure_directory(path: Path, mode: int = 0o755) -> None:
    """Make the directory and those above it where they are missing, each one durable in its parent."""
    if path.is_dir():
        return
    ensure_directory(path.parent, mode)
    try:
        make_directory(path, mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> int:
    """A descriptor for reading; raises `OSError` for a symlink (ELOOP) and for anything that is not a plain file."""
    # O_NONBLOCK: opening a named pipe would otherwise wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is not a plain file", str(path))


def read_file(path: Path, limit_bytes: int) -> bytes:
    """All bytes of a plain file; raises `OSError` (EMSGSIZE) when there are more than `limit_bytes`."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EMSGSIZE, f"is larger than {limit_bytes} bytes", str(path))
    return data


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file, durable before return; raises `FileExistsError` when there is one."""
    write_pieces(path, (data,), mode)


def write_pieces(path: Path, pieces: Iterable[bytes], mode: int = 0o644) -> None:
    """Write a new file piece after piece, durable before return; raises `FileExistsError` when there is one."""
    descriptor = create_file(path)
    try:
        for piece in pieces:
            _write_all(descriptor, piece)
        finish_file(descriptor, mode)
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path, mode: int, on_bytes: Callable[[int], None]) -> None:
    """Copy a plain file's bytes to a new file, durable before return; `on_bytes` hears of each chunk."""
    reading = open_regular(source)
    try:
        writing = create_file(target)
        try:
            while chunk := os.read(reading, CHUNK_BYTES):
                _write_all(writing, chunk)
                on_bytes(len(chunk))
            finish_file(writing, mode)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which ends in a newline, durable before return; one that was torn before it is ended first."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # somebody was killed in the middle of a line
        _write_all(descriptor, b"\n" + line if torn else line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tail(path: Path, limit_bytes: int) -> list[bytes]:
    """The last lines of a plain file, of at most so many bytes; none where there is no file."""
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = max(0, size - limit_bytes)
        file.seek(begin)
        lines = file.read(limit_bytes).split(b"\n")
    return [line for line in lines[1 if begin else 0 :] if line.strip()]


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put a file in place in one step: a reader sees the old bytes or the new ones, also after a crash."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # as `stores.staging` knows it
    try:
        write_file(temporary, data, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def rename_directory(source: Path, target: Path) -> bool:
    """Move a complete directory to its place; False when there already is a non-empty one."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    sync_directory(target.parent)
    return True


def move_file(source: Path, target: Path) -> None:
    """Move a file that is durable to its place in one step, over another if there is one."""
    os.replace(source, target)
    sync_directory(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory that no reader follows; what can not be removed is logged and left for the next sweep."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return  # another process removed it first, which is what we wanted
    except OSError as error:
        _log.warning("could not remove %s (%s); remove it by hand if it stays", path.name, error.strerror)


def require_space(directory: Path, size: int) -> None:
    """Refuse early what would fill the disk, and keep a little for the others on it.

    Raises:
        DiskFull: fewer than `size` bytes and a reserve of 64 MiB are free.
    """
    free = shutil.disk_usage(directory).free
    if free < size + _RESERVE_BYTES:
        raise DiskFull(
            f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free, of which 64 MiB stay in reserve; "
            "free some, then try again"
        )


@contextmanager
def exclusive_lock(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file `path` between threads, processes and (where the mount supports it) hosts.

    The kernel releases it when the holder dies, so a crash leaves no stale lock; the empty file stays.

    Raises:
        LockTimeout: another one held it for `timeout_s` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        deadline = Deadline.after(timeout_s)
        while not _try_lock(descriptor):
            if deadline.expired():
                raise LockTimeout(
                    f"{path.name} was held by another process for {timeout_s:g} s; try again later",
                    retry_after=timeout_s,
                )
            threading.Event().wait(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Keep `unread` from getting the plain file `path` while the block runs; any number may read at once.

    Where the mount has no locks this does nothing, and `unread` refuses.

    Raises:
        FileNotFoundError: it is not there, or was taken away while we waited.
        LockTimeout: it is being taken away for longer than `timeout_s` seconds.
    """
    descriptor = open_regular(path)
    try:
        deadline = Deadline.after(timeout_s)
        while not _try_share(descriptor):
            if deadline.expired():
                raise LockTimeout(f"{path} is being removed; try again later", retry_after=timeout_s)
            threading.Event().wait(_LOCK_POLL_S)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            raise FileNotFoundError(errno.ENOENT, "was replaced", str(path))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unread(path: Path) -> Iterator[bool]:
    """Whether nobody is `reading` the file; if so, nobody begins to while the block runs."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)  # NFS locks exclusively only what is writable
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file; a missing file is not held."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_share(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def create_file(path: Path) -> int:
    """A descriptor for writing a new file, which nobody else may open yet; raises `FileExistsError`."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def finish_file(descriptor: int, mode: int) -> None:
    """Give what was written its mode, and make it durable."""
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)
