"""The private copies of checkpoints: those in use, and a few for going back and for a quick restart."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from acemath_registry.refs import ModelRef

_log = logging.getLogger(__name__)


def prune(folder: Path, keep: Collection[ModelRef], spare: int) -> None:
    """Remove all but the newest `spare` copies `<folder>/<name>/<version>` that are not of versions to keep.

    Call it while no copy is being made or read. A copy that cannot be removed is left and logged.
    """
    kept = {folder / ref.name / ref.version for ref in keep}
    copies = [path for path in folder.glob("*/[!.]*") if path.is_dir() and path not in kept]
    copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for copy in copies[spare:]:
        try:
            shutil.rmtree(copy)
        except OSError as error:
            _log.warning("the private copy %s cannot be removed: %s", copy, error.strerror)
        else:
            _log.info("removed the private copy %s", copy)
