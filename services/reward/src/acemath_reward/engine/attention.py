"""Attention by cell: one call of one shape for each, so that neither mates nor their number enter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acemath_reward.engine.device import Placement
from acemath_reward.engine.packing import Run


class CellMask:
    """The causal mask of a cell behind any number of keys, as a view of one table.

    torch's `is_causal` is aligned at the upper left, which is wrong for rows behind others.

    Args:
        positions: longest sequence.
        group: query heads that share a key head; each row of the mask comes so many times.
        placement: device, format and tokens of a cell.
    """

    def __init__(self, positions: int, group: int, placement: Placement) -> None:
        shape = (placement.cell_tokens, positions + placement.cell_tokens)
        full = torch.full(shape, float("-inf"), dtype=placement.dtype, device=placement.device)
        self._table = full.triu_(positions + 1).repeat_interleave(group, dim=0)
        self._zero, self._group, self._cuda = positions, group, placement.device.type == "cuda"

    def behind(self, rows: int, keys: int) -> Tensor:
        """The additive mask `[rows * group, keys]`, 0 or -inf: row i sees all but the last `rows - 1 - i` keys."""
        start = self._zero - (keys - rows)
        view = self._table[: rows * self._group, start : start + keys]
        return view.contiguous() if self._cuda else view  # CUDA kernels ask for aligned rows


def attend(query: Tensor, fresh: Tensor, layer: int, runs: Sequence[Run], mask: CellMask) -> Tensor:
    """Attention of all cells of the runs.

    Query heads that share a key head are handed over as more rows of that head, so that no key is copied for them.

    Args:
        query: `[rows, heads, head_dim]`, the rows that the runs' spans count in.
        fresh: keys and values that this pass computed, `[rows of the pass, 2, kv_heads, head_dim]`.
        layer: which layer's kept keys and values lie before them.
        runs: what attends to what.
        mask: of a cell.

    Returns:
        `[rows, heads * head_dim]`; zero in the rows that fill the last tile.
    """
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    heads = (fresh.shape[2], query.shape[1] // fresh.shape[2])  # key heads, query heads of each
    for run in runs:
        known = torch.cat([*(kept[layer] for kept in run.before), *(fresh[rows] for rows in run.rows)])
        keys, values = known[:, 0].transpose(0, 1)[None], known[:, 1].transpose(0, 1)[None]
        for span in run.spans:
            rows = query[span.rows].view(-1, *heads, query.shape[2]).transpose(0, 1)
            result = F.scaled_dot_product_attention(
                rows.flatten(1, 2)[None],
                keys[:, :, : span.keys],
                values[:, :, : span.keys],
                attn_mask=mask.behind(rows.shape[1], span.keys),
            )
            out[span.rows].view(-1, *heads, query.shape[2]).copy_(result[0].reshape(rows.shape).transpose(0, 1))
    return out.flatten(1)
