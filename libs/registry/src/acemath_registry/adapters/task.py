"""What an adapter says of its training: for which task, and on which base. The merge needs neither."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from acemath_registry.errors import RejectReason, VerificationError
from acemath_registry.manifest import ModelKind
from acemath_registry.refs import ModelRef
from acemath_registry.tensors import read_json

_log = logging.getLogger(__name__)

_TASKS: Final[Mapping[str, ModelKind]] = {"CAUSAL_LM": ModelKind.POLICY, "SEQ_CLS": ModelKind.REWARD}
"""PEFT's names of the tasks of which we know the kind of model."""


def check_task(path: Path, kind: ModelKind, base: ModelRef) -> None:
    """Refuse an adapter of another kind of model; log a warning where it names another base: names are no proof.

    Args:
        path: `adapter_config.json`; where there is none, nothing is checked.
        kind: what it is to be published as.
        base: the version that it is to be published on.

    Raises:
        VerificationError: WRONG_KIND, or ADAPTER_MALFORMED.
        StorageError: it can not be read.
    """
    if not path.is_file():
        return
    config = read_json(path, RejectReason.ADAPTER_MALFORMED)
    task, named = config.get("task_type"), config.get("base_model_name_or_path")
    meant = _TASKS.get(task) if isinstance(task, str) else None
    if meant not in (None, kind):
        said = f"task_type is {task!r}, of a {meant} model, and it is published as a {kind}; give --kind {meant}"
        raise VerificationError(RejectReason.WRONG_KIND, said, file=path.name)
    if isinstance(named, str) and named and PurePosixPath(named).name.casefold() != base.name.casefold():
        _log.warning("the adapter was trained on %r, and is published on %s; check that it is the same", named, base)
