"""Publishers' private folders on a file system: each is held by a lock, and swept when its publisher is dead.

As are the files by which documents were to be replaced.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from acemath_registry.durable import exclusive_lock, is_locked, make_directory, remove_tree
from acemath_registry.stores.port import Leftover

STALE_STAGING_S: Final = 24 * 3600.0
"""Age at which a dead publisher's folder goes: a living one holds its lock, but not every mount shares locks."""

_LOCK: Final = "publisher.lock"
_REPLACING: Final = re.compile(r"\..+\.[0-9a-f]{32}\Z")
"""How `durable.replace_file` names what is to replace another file; nobody reads it."""
_NO_DOCUMENTS: Final = frozenset({"models", "staging"})


def sweep_staging(staging: Path, *, stale_after_s: float = STALE_STAGING_S) -> None:
    """Remove what killed publishers left: folders that are old and whose lock nobody holds.

    Raises:
        OSError: `staging` can not be listed.
    """
    for folder in sorted(staging.iterdir()):
        if _age_s(folder) > stale_after_s and not is_locked(folder / _LOCK):
            remove_tree(folder)


def left_in(staging: Path, *, stale_after_s: float) -> list[Leftover]:
    """The folders that `sweep_staging` removes, now or when they are old enough, sorted by name.

    Raises:
        OSError: `staging` can not be listed.
    """
    left: list[Leftover] = []
    for folder in sorted(staging.iterdir()):
        with suppress(FileNotFoundError):  # whose it is has finished since we listed it
            until = folder.stat().st_mtime + stale_after_s
            if not is_locked(folder / _LOCK):
                left.append(Leftover(str(folder), _size(folder), until))
    return left


def _size(folder: Path) -> int:
    paths = [Path(below, name) for below, _, names in os.walk(folder) for name in names]
    return sum(path.lstat().st_size for path in paths)


def sweep_documents(root: Path, *, stale_after_s: float) -> None:
    """Remove files that were to replace a document, and whose writer was killed: what takes milliseconds is old.

    Raises:
        OSError: a folder can not be listed, or a file not removed.
    """
    for folder, below, names in os.walk(root):
        if Path(folder) == root:
            below[:] = [name for name in below if name not in _NO_DOCUMENTS]
        for path in (Path(folder, name) for name in names):
            if _REPLACING.match(path.name) and _age_s(path) > stale_after_s:
                path.unlink(missing_ok=True)


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return -1.0  # whose it is has finished since we listed it


@contextmanager
def staging_folder(staging: Path) -> Iterator[Path]:
    """A private folder below `staging` for as long as the block runs; no sweep takes it, and nothing is left of it."""
    folder = staging / uuid.uuid4().hex
    make_directory(folder, 0o700)
    try:
        with exclusive_lock(folder / _LOCK):
            make_directory(folder / "version", 0o755)
            yield folder / "version"
    finally:
        remove_tree(folder)
