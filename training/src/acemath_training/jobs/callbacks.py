"""What a running job tells and when it stops: metrics as JSON lines, progress on one line, a time limit."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class JsonlMetrics(TrainerCallback):
    """Appends every log to `metrics.jsonl` and prints it on one line; rank 0 only."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self._path = path
        self._started: tuple[float, int] | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, "time": round(time.time(), 1), **logs}
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        shown = " ".join(f"{key}={value:.4g}" for key, value in logs.items() if isinstance(value, float))
        sys.stdout.write(f"step {state.global_step}/{state.max_steps} {self._pace(state.global_step)}{shown}\n")
        sys.stdout.flush()

    def _pace(self, step: int) -> str:
        now = time.monotonic()
        if self._started is None:
            self._started = (now, step)
            return ""
        elapsed, steps = now - self._started[0], step - self._started[1]
        return f"{elapsed / 60:.1f} min, {elapsed / max(steps, 1):.1f} s/step, "


class TimeLimit(TrainerCallback):
    """Ends a stage after so many minutes, with a checkpoint, so that the next stage can continue from it."""

    def __init__(self, minutes: float) -> None:
        """Take the limit; the clock starts with the first step."""
        self._seconds = minutes * 60
        self._begin: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._begin = self._begin or time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end once the time is used up."""
        if _said_by_rank_0(self._begin is not None and time.monotonic() - self._begin > self._seconds):
            control.should_save = True
            control.should_training_stop = True
        return control


def _said_by_rank_0(over: bool) -> bool:
    """Rank 0's verdict on every rank: with two clocks a step apart, one rank would wait for the other for ever."""
    if not (dist.is_available() and dist.is_initialized()):
        return over
    verdict = [over]
    dist.broadcast_object_list(verdict, src=0)
    return verdict[0]
