"""The private copies of checkpoints: those in use, and a few for going back and for a quick restart."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from acemath_registry.durable import is_locked
from acemath_registry.refs import ModelRef

_log = logging.getLogger(__name__)


def prune(folder: Path, keep: Collection[ModelRef], spare: int) -> None:
    """Remove all but the newest `spare` copies `<folder>/<name>/<version>` that are not of versions to keep.

    What a service that was killed had copied of a version goes, too: nobody may ever ask for that version again. Call
    it while no copy is being made or read. A copy that cannot be removed is left and logged.
    """
    kept = {folder / ref.name / ref.version for ref in keep}
    copies = [path for path in folder.glob("*/[!.]*") if path.is_dir() and path not in kept]
    copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for copy in (*copies[spare:], *_halves(folder)):
        try:
            shutil.rmtree(copy)
        except OSError as error:
            _log.warning("the private copy %s cannot be removed: %s", copy, error.strerror)
        else:
            _log.info("removed the private copy %s", copy)


def _halves(folder: Path) -> list[Path]:
    """Copies whose maker is dead: it would hold the lock of its version (`cache.private_copy`)."""
    halves = [path for path in folder.glob("*/.*.partial-*") if path.is_dir()]
    return [path for path in halves if not is_locked(path.with_name(f"{path.name.partition('.partial-')[0]}.lock"))]
