"""A registry on a file system, local or shared: rename, `O_EXCL`, fsync and the kernel's locks."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Final

from acemath_registry.adapters.stored import verify_stored
from acemath_registry.documents import MAX_DOCUMENT_BYTES
from acemath_registry.durable import (
    LOCK_TIMEOUT_S,
    append_line,
    copy_file,
    ensure_directory,
    exclusive_lock,
    move_file,
    read_file,
    read_tail,
    remove_tree,
    rename_directory,
    replace_file,
    sync_directory,
    unread,
    write_file,
)
from acemath_registry.errors import storage_errors
from acemath_registry.manifest import MANIFEST_NAME, Manifest
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.stores.port import Advance, Leftover
from acemath_registry.stores.staging import STALE_STAGING_S, left_in, staging_folder, sweep_documents, sweep_staging
from acemath_registry.verify import check_listing

_APPEND_TIMEOUT_S: Final = 5.0
_WRITTEN_S: Final = 60.0
"""Nobody takes so long to write a document."""


class Disk:
    """`Store` on paths of this machine."""

    def read(self, path: PurePath) -> bytes:
        """See `Documents.read`."""
        return read_file(Path(path), MAX_DOCUMENT_BYTES)

    def replace(self, path: PurePath, data: bytes) -> None:
        """See `Documents.replace`."""
        ensure_directory(Path(path.parent))
        replace_file(Path(path), data)

    def create(self, path: PurePath, data: bytes) -> bool:
        """See `Documents.create`; whoever creates the same holds a lock."""
        if Path(path).exists():
            return False
        self.replace(path, data)
        return True

    def remove(self, path: PurePath) -> None:
        """See `Documents.remove`."""
        Path(path).unlink()
        sync_directory(Path(path.parent))

    @contextmanager
    def changing(self, path: PurePath, lock: PurePath) -> Iterator[_LockedChange]:
        """See `Documents.changing`."""
        ensure_directory(Path(lock.parent))
        with exclusive_lock(Path(lock), LOCK_TIMEOUT_S):
            yield _LockedChange(self, path)

    def names(self, folder: PurePath) -> list[str]:
        """See `Documents.names`."""
        here = Path(folder)
        return sorted(path.stem for path in here.glob("[!.]*.json")) if here.is_dir() else []

    def folders(self, folder: PurePath) -> list[str]:
        """See `Documents.folders`."""
        here = Path(folder)
        return sorted(path.name for path in here.iterdir() if path.is_dir()) if here.is_dir() else []

    def mark(self, path: PurePath) -> Hashable | None:
        """See `Documents.mark`: a file is only ever replaced as a whole."""
        try:
            found = Path(path).stat()
        except OSError:
            return None  # who asks for the document is told what is wrong
        return found.st_mtime_ns, found.st_ino, found.st_size

    def append(self, log: PurePath, lock: PurePath, line: bytes) -> None:
        """See `Documents.append`."""
        ensure_directory(Path(log.parent))
        with exclusive_lock(Path(lock), _APPEND_TIMEOUT_S):
            append_line(Path(log), line)

    def tail(self, log: PurePath, limit_bytes: int) -> list[bytes]:
        """See `Documents.tail`."""
        return read_tail(Path(log), limit_bytes)

    def exists(self, root: PurePath) -> bool:
        """See `Versions.exists`."""
        return Path(root).is_dir()

    def versions(self, models: PurePath, holding: str | None = None) -> list[tuple[str, str]]:
        """See `Versions.versions`."""
        found = Path(models).glob("*/*" if holding is None else f"*/*/{holding}")
        directories = sorted(path if holding is None else path.parent for path in found)
        return [(directory.parent.name, directory.name) for directory in directories]

    def has(self, version: PurePath) -> bool:
        """See `Versions.has`."""
        return Path(version).exists()

    @contextmanager
    def opened(self, version: PurePath, names: Collection[str]) -> Iterator[Path]:
        """See `Versions.opened`: the version's own directory, whether or not it is there."""
        yield Path(version)

    @contextmanager
    def gathered(
        self, version: PurePath, scratch: Path | None = None, progress: Progress = no_progress
    ) -> Iterator[Path]:
        """See `Versions.gathered`: the version's own directory, whether or not it is there."""
        yield Path(version)

    def check_listing(self, manifest: Manifest, version: PurePath) -> None:
        """See `Versions.check_listing`."""
        check_listing(manifest, Path(version))

    def fetch(self, version: PurePath, names: Collection[str], into: Path, advance: Advance) -> None:
        """See `Versions.fetch`."""
        for name in names:
            copy_file(Path(version) / name, into / name, 0o600, advance)

    @contextmanager
    def staging(self, folder: PurePath) -> Iterator[Path]:
        """See `Versions.staging`: on the same file system."""
        here = Path(folder)
        ensure_directory(here)
        sweep_staging(here)
        with staging_folder(here) as staged:
            yield staged

    def install(self, staged: Path, version: PurePath, progress: Progress) -> bool:
        """See `Versions.install`: one rename."""
        target = Path(version)
        ensure_directory(target.parent)
        return rename_directory(staged, target)

    def verify_again(self, ref: ModelRef, version: PurePath) -> Manifest:
        """See `Versions.verify_again`: every byte."""
        return verify_stored(ref, Path(version))

    def attach(self, version: PurePath, name: str, data: bytes, staging: PurePath) -> None:
        """See `Versions.attach`: whoever lists the version meanwhile finds no half of a file."""
        here = Path(staging)
        ensure_directory(here)
        with staging_folder(here) as folder:
            write_file(folder / name, data)
            move_file(folder / name, Path(version) / name)

    @contextmanager
    def alone(self, lock: PurePath) -> Iterator[None]:
        """See `Versions.alone`."""
        ensure_directory(Path(lock.parent))
        with exclusive_lock(Path(lock)):
            yield

    def sweep(self, root: PurePath, staging: PurePath, older_than_s: float) -> None:
        """See `Versions.sweep`."""
        if Path(staging).is_dir():
            sweep_staging(Path(staging), stale_after_s=max(older_than_s, STALE_STAGING_S))
        sweep_documents(Path(root), stale_after_s=max(older_than_s, _WRITTEN_S))

    def leftovers(self, root: PurePath, staging: PurePath, older_than_s: float) -> list[Leftover]:
        """See `Versions.leftovers`."""
        if not Path(staging).is_dir():
            return []
        return left_in(Path(staging), stale_after_s=max(older_than_s, STALE_STAGING_S))

    def unmark(self, mark: PurePath) -> bool:
        """See `Versions.unmark`."""
        path = Path(mark)
        if not path.exists():
            return False
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
        return True

    @contextmanager
    def announced(self, note: PurePath, data: bytes, marks: Sequence[PurePath]) -> Iterator[None]:
        """See `Versions.announced`: who needs a version locks its manifest (`verify.kept`)."""
        yield

    @contextmanager
    def removing(self, version: PurePath, mark: PurePath, staging: PurePath) -> Iterator[_Burial]:
        """See `Versions.removing`: the manifest is locked, which whoever promotes or copies it has locked shared."""
        ensure_directory(Path(staging))
        with unread(Path(version) / MANIFEST_NAME) as alone:
            yield _Burial(Path(version), Path(mark), Path(staging) / f"gc-{uuid.uuid4().hex}", alone)


class _Burial:
    def __init__(self, version: Path, mark: Path, grave: Path, alone: bool) -> None:
        self._version, self._mark, self._grave = version, mark, grave
        self.refused = None if alone else "somebody reads it now"

    def go(self) -> None:
        rename_directory(self._version, self._grave)
        sync_directory(self._version.parent)

    def clean(self) -> None:
        self._mark.unlink(missing_ok=True)
        remove_tree(self._grave)


class _LockedChange:
    def __init__(self, disk: Disk, path: PurePath) -> None:
        self._disk, self._path = disk, path

    def read(self) -> bytes | None:
        with storage_errors(f"reading {self._path.name}"):
            try:
                return self._disk.read(self._path)
            except FileNotFoundError:
                return None

    def write(self, data: bytes) -> None:
        self._disk.replace(self._path, data)


DISK: Final = Disk()
