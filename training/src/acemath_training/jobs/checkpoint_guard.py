"""Checkpoints that are whole or not there: `COMPLETE.json` is written last, and resuming reads it first.

transformers writes `checkpoint-N` in place, so a kill in the middle leaves a folder that looks like a
checkpoint. DeepSpeed refuses another world size only deep inside its loader. Both become one clear sentence.
"""

import json
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from acemath_training.errors import CheckpointError

MARKER = "COMPLETE.json"

_log = logging.getLogger(__name__)


class Topology(BaseModel):
    """What must be equal for a resumed run to see the same rows and states; `inputs` as `inputs.digests` has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    world_size: int
    rows_per_device: int
    gradient_accumulation: int
    seed: int
    zero_stage: int
    config_sha256: str
    inputs: dict[str, str] = {}


class Marker(BaseModel):
    """Content of `COMPLETE.json`: the files with their sizes, and the topology that wrote them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    files: dict[str, int]
    topology: Topology


class CheckpointGuard(TrainerCallback):
    """Marks each checkpoint complete once every rank has written its part, and keeps the newest two."""

    def __init__(self, topology: Topology, keep: int = 2) -> None:
        """Take the topology of this run and how many complete checkpoints stay."""
        self._topology, self._keep = topology, keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the marker last, by temporary file, fsync and rename."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        files = {str(path.relative_to(directory)): path.stat().st_size for path in _files(directory)}
        write_atomically(
            directory / MARKER,
            Marker(step=state.global_step, files=files, topology=self._topology).model_dump_json(indent=1),
        )
        for old in complete_checkpoints(directory.parent)[: -self._keep]:
            shutil.rmtree(old)


def find_resumable(output: Path, topology: Topology) -> Path | None:
    """The newest complete checkpoint, or None when there is none; incomplete ones are moved aside.

    Raises:
        CheckpointError: the newest complete checkpoint is damaged or was made under another topology.
    """
    for directory in _checkpoints(output):
        if not (directory / MARKER).is_file():
            # Every rank comes here; the first one moves the folder.
            with suppress(FileNotFoundError):
                directory.rename(directory.with_name(f"incomplete-{directory.name}-{os.getpid()}"))
    complete = complete_checkpoints(output)
    if not complete:
        return None
    newest = complete[-1]
    _check(newest, topology)
    return newest


def complete_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    return [directory for directory in _checkpoints(output) if (directory / MARKER).is_file()]


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _check(directory: Path, topology: Topology) -> None:
    try:
        marker = Marker.model_validate_json((directory / MARKER).read_text("utf-8"))
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{directory / MARKER} cannot be read: {error}") from error
    wrong = [name for name, size in marker.files.items() if _size(directory / name) != size]
    if wrong:
        raise CheckpointError(f"{directory} is damaged: {', '.join(sorted(wrong)[:3])} changed or missing")
    changed = _differences(directory, marker.topology, topology)
    if changed:
        raise CheckpointError(
            f"{directory} cannot be resumed by this run: {'; '.join(changed)}; "
            "put back what it was, or start anew with another output folder"
        )


def _differences(directory: Path, before: Topology, now: Topology) -> list[str]:
    old, new = before.model_dump(exclude={"inputs"}), now.model_dump(exclude={"inputs"})
    changed = [f"{key} was {old[key]}, is {new[key]}" for key in old if old[key] != new[key]]
    unknown = sorted(set(now.inputs) - set(before.inputs))
    if unknown:
        _log.warning("%s does not say whether these changed since: %s", directory / MARKER, ", ".join(unknown))
    for name, digest in now.inputs.items():
        if before.inputs.get(name, digest) != digest:
            changed.append(f"{name} was {before.inputs[name][:12]}, is {digest[:12]}, so its rows are others")
    return changed


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MARKER)


def _checkpoints(output: Path) -> list[Path]:
    found = [path for path in output.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))
