"""Prompt groups to one packed batch: no padding between sequences, every prompt once.

The schedule is the same whatever a candidate is batched with: its prompt is one segment (causal in itself), the
candidate one segment that attends to prompt and itself. So a score cannot depend on its mates through the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acemath_reward.engine.device import Placement
from acemath_reward.ports import PromptGroup

_FILLER_ID = 0  # rows that fill the last tile; nothing attends to them


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of the batch that attend together.

    Attributes:
        rows: where they are.
        prompt: rows of the prompt before them; None for the prompt itself and for a candidate without one.
        mask: additive, `[len(rows), len(prompt) + len(rows)]`, 0 or -inf, aligned at the lower right; None means
            plain causal. (torch's `is_causal` is aligned at the upper left, which is wrong behind a prompt.)
    """

    rows: slice
    prompt: slice | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass.

    Attributes:
        ids: token ids, `[rows]`, filled up to a whole number of tiles.
        positions: position of each row in its own sequence, `[rows]`.
        segments: in the order of their rows.
        last_rows: row of the last token of each candidate, in the groups' order.
    """

    ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    last_rows: tuple[int, ...]


def pack(groups: Sequence[PromptGroup], placement: Placement) -> PackedBatch:
    """Lay out the groups: each prompt, then its candidates."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    last_rows: list[int] = []
    for group in groups:
        prompt = _append(ids, positions, group.prompt, 0) if group.prompt else None
        if prompt is not None:
            segments.append(Segment(prompt, None, None))
        for candidate in group.candidates:
            rows = _append(ids, positions, candidate, len(group.prompt))
            mask = None if prompt is None else _behind(len(group.prompt), len(candidate), placement)
            segments.append(Segment(rows, prompt, mask))
            last_rows.append(rows.stop - 1)
    filler = -len(ids) % placement.row_tile
    return PackedBatch(
        ids=torch.tensor(ids + [_FILLER_ID] * filler, device=placement.device),
        positions=torch.tensor(positions + [0] * filler, device=placement.device),
        segments=tuple(segments),
        last_rows=tuple(last_rows),
    )


def _append(ids: list[int], positions: list[int], tokens: Sequence[int], first: int) -> slice:
    start = len(ids)
    ids.extend(tokens)
    positions.extend(range(first, first + len(tokens)))
    return slice(start, len(ids))


def _behind(prompt: int, own: int, placement: Placement) -> Tensor:
    """The lower-right causal mask of `own` rows behind `prompt` rows."""
    full = torch.full((own, prompt + own), float("-inf"), dtype=placement.dtype, device=placement.device)
    return full.triu_(prompt + 1)
