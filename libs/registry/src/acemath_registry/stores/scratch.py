"""This machine's disk for what is uploaded to a bucket or downloaded from it to be read."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acemath_registry.durable import make_directory, remove_tree
from acemath_registry.errors import StorageError, storage_errors
from acemath_registry.stores.staging import staging_folder, sweep_staging

_DOING = "making a directory for what is downloaded or uploaded"


@contextmanager
def private(folder: Path | None = None) -> Iterator[Path]:
    """A new private directory, `folder` or one where temporary files go, which is gone at the end: for small files."""
    with storage_errors(_DOING):
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="acemath-registry-"))
        else:
            make_directory(folder, 0o700)
    try:
        yield folder
    finally:
        remove_tree(folder)


@contextmanager
def checkpoint_scratch() -> Iterator[Path]:
    """The same for whole checkpoints: what a process that was killed left goes a day later, with the next one.

    Raises:
        StorageError: there is no room for temporary files, or somebody else's directory is in the way.
    """
    with storage_errors(_DOING):
        own = _own_folder()
        sweep_staging(own)
    with staging_folder(own) as folder:
        yield folder


def _own_folder() -> Path:
    """A folder below `TMPDIR` that only this user can write to; the sweep would remove whatever a link leads to."""
    folder = Path(tempfile.gettempdir()) / f"acemath-registry-{os.getuid()}"
    try:
        make_directory(folder, 0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
            raise StorageError(
                f"{folder} is not a directory of mode 0700 that is ours; remove it, or set TMPDIR to another place"
            ) from None
    return folder
