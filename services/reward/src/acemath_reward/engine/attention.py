"""Attention by cell: one call of one shape for each, so that neither mates nor their number enter.

`varlen` does the same in one call for all cells where the device has a kernel for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.crew import Crew
from acemath_reward.engine.device import Placement
from acemath_reward.engine.packing import Run, Span
from acemath_reward.engine.shares import shared

SHARED_BYTES = 2**29
"""Of keys and values that all shares of a pass may copy together: behind very long prompts fewer threads attend."""


class Attention(Protocol):
    """Attention of all cells of a pass, layer after layer in the same buffers.

    Attributes:
        query: where each layer puts its queries, `[kv_heads, rows, group, head_dim]`.
    """

    query: Tensor

    def __call__(self, layer: int) -> Tensor:
        """`[rows, group * kv_heads * head_dim]` for the queries and fresh keys there are now.

        Args:
            layer: which layer's kept keys and values lie before the fresh ones.
        """
        ...


MakeAttention = Callable[[Sequence[Run], int, Tensor], Attention]
"""Of what attends to what, the rows of the queries (fillers among them), and where each layer puts its keys and values,
`[rows of the pass, 2, kv_heads, head_dim]`."""


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


@dataclass(frozen=True, slots=True)
class _Call:
    """One attention call: views of where its arguments and its result lie in every layer."""

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class _Share:
    """What one thread computes of every layer, run after run in one buffer `known` of keys and values."""

    known: Tensor
    runs: list[tuple[Run, list[_Call]]]


class CellAttention:
    """Attention of all cells of a pass, layer after layer in the same buffers.

    Query heads that share a key head are handed over as more rows of that head, so that no key is copied for them.
    All views are made once for a pass: on short cells, making them costs as much as a third of the computation.

    Args:
        runs: what attends to what.
        rows: of the queries, fillers among them.
        fresh: where each layer puts its keys and values, `[rows of the pass, 2, kv_heads, head_dim]`.
        mask: of a cell.
        config: shapes.
        crew: shares the runs.

    Attributes:
        query: where each layer puts its queries, `[kv_heads, rows, group, head_dim]`.
    """

    def __init__(
        self, runs: Sequence[Run], rows: int, fresh: Tensor, mask: CellMask, config: EngineConfig, crew: Crew
    ) -> None:
        self._fresh, self._mask, self._crew = fresh, mask, crew
        group = config.heads // config.kv_heads
        self.query = fresh.new_empty(config.kv_heads, rows, group, config.head_dim)
        self._out = fresh.new_zeros(rows, group, config.kv_heads, config.head_dim)  # fillers stay zero
        self._shares = [self._share(share) for share in shared(runs, crew.threads, self._most_shares(runs))]

    def __call__(self, layer: int) -> Tensor:
        """`[rows, group * kv_heads * head_dim]` for the queries and fresh keys there are now.

        Args:
            layer: which layer's kept keys and values lie before the fresh ones.
        """
        self._crew.each(partial(self._attend, layer), self._shares)
        return self._out.flatten(1)

    def _attend(self, layer: int, share: _Share) -> None:
        for run, calls in share.runs:
            parts = [*(kept[layer] for kept in run.before), *(self._fresh[rows] for rows in run.rows)]
            torch.cat(parts, out=share.known[: run.keys])
            for call in calls:
                found = F.scaled_dot_product_attention(call.query, call.keys, call.values, attn_mask=call.mask)
                call.out.copy_(found)

    def _most_shares(self, runs: Sequence[Run]) -> int:
        longest = max((run.keys for run in runs), default=0)
        return max(1, SHARED_BYTES // max(1, longest * self._fresh[:1].nbytes))

    def _share(self, runs: Sequence[Run]) -> _Share:
        longest = max(run.keys for run in runs)
        known = self._fresh.new_empty(longest, *self._fresh.shape[1:])
        return _Share(known, [(run, [self._call(span, known) for span in run.spans]) for run in runs])

    def _call(self, span: Span, known: Tensor) -> _Call:
        rows = span.rows.stop - span.rows.start
        keys, values = known[: span.keys].permute(1, 2, 0, 3)[:, None]
        out = self._out[span.rows].permute(2, 0, 1, 3)
        return _Call(
            self.query[:, span.rows].flatten(1, 2)[None],
            keys,
            values,
            self._mask.behind(rows, span.keys),
            out.flatten(1, 2)[None],
        )
