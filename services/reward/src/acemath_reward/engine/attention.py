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
        placement: device, format and tokens of a cell.
    """

    def __init__(self, positions: int, placement: Placement) -> None:
        shape = (placement.cell_tokens, positions + placement.cell_tokens)
        full = torch.full(shape, float("-inf"), dtype=placement.dtype, device=placement.device)
        self._table, self._zero = full.triu_(positions + 1), positions

    def behind(self, rows: int, keys: int) -> Tensor:
        """The additive mask `[rows, keys]`, 0 or -inf: row i sees all but the last `rows - 1 - i` keys."""
        start = self._zero - (keys - rows)
        return self._table[:rows, start : start + keys]


def attend(query: Tensor, fresh: Tensor, layer: int, runs: Sequence[Run], mask: CellMask) -> Tensor:
    """Attention of all cells of the runs.

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
    grouped = query.shape[1] != fresh.shape[2]
    for run in runs:
        known = torch.cat([*(kept[layer] for kept in run.before), *(fresh[rows] for rows in run.rows)])
        keys, values = _heads_first(known[:, 0]), _heads_first(known[:, 1])
        for span in run.spans:
            result = F.scaled_dot_product_attention(
                _heads_first(query[span.rows]),
                keys[:, :, : span.keys],
                values[:, :, : span.keys],
                attn_mask=mask.behind(span.rows.stop - span.rows.start, span.keys),
                enable_gqa=grouped,
            )
            out[span.rows] = result[0].transpose(0, 1)
    return out.flatten(1)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]
