"""transformers: one sequence at a time, or padded on the right in batches of similar length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from bench.reward.groups import Group, Ids, Scores, folded, sequences
from bench.reward.worker import Options


class Transformers:
    """`AutoModelForSequenceClassification` with sdpa.

    Args:
        checkpoint: its directory.
        dtype: `bfloat16` or `float32`.
        device: torch device.
        threads: of one CPU operator.
    """

    def __init__(self, checkpoint: Path, dtype: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self._model, self._device = loaded.eval().to(device), device
        self._model.config.use_cache = False
        self.facts: dict[str, Any] = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": dtype,
            "threads": threads,
            "device": device if device == "cpu" else torch.cuda.get_device_name(),
        }

    def prepare(self, options: Options) -> None:
        """Nothing to do."""

    @torch.inference_mode()
    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """In batches of `options["batch"]`, one by one without it."""
        whole = sequences(groups)
        values = self._padded(whole, options["batch"]) if "batch" in options else self._alone(whole)
        return folded(values, groups)

    def _alone(self, whole: Sequence[Ids]) -> list[float]:
        return [float(self._model(torch.tensor([ids], device=self._device)).logits) for ids in whole]

    def _padded(self, whole: Sequence[Ids], batch: int) -> list[float]:
        order = sorted(range(len(whole)), key=lambda i: len(whole[i]))
        values = [0.0] * len(whole)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            for index, value in zip(chosen, self._batch([whole[i] for i in chosen]), strict=True):
                values[index] = value
        return values

    def _batch(self, whole: Sequence[Ids]) -> list[float]:
        """The trunk on the padded batch, the head on the true last rows: right for any padding id."""
        longest = max(map(len, whole))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in whole], device=self._device)
        lengths = torch.tensor([len(one) for one in whole], device=self._device)
        mask = (torch.arange(longest, device=self._device)[None] < lengths[:, None]).long()
        rows: Tensor = self._model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = rows[torch.arange(len(whole), device=self._device), lengths - 1]
        found: list[float] = self._model.score(last)[:, 0].float().tolist()
        return found

    def close(self) -> None:
        """Nothing to end."""


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """No progress bars of weights in the log."""
    transformers.utils.logging.disable_progress_bar()
    yield


def create(options: Options) -> Transformers:
    """See `bench.reward.worker`."""
    with quiet_progress():
        return Transformers(Path(options["checkpoint"]), options["dtype"], options["device"], options["threads"])
