"""Attention of all cells of a pass in one call, where the device has a kernel for sequences of various lengths.

A GPU waits for every call: a pass of thirty cells would be thirty small ones in each layer. Each cell is one sequence
of the call, with the queries and the keys that it has alone, so the schedule is that of `attention.CellAttention`.
Flash Attention computes sequences apart, and with one split over the keys a sequence has the same bits whatever stands
beside it (torch.nn.attention.varlen, `num_splits`). That is tried at load, not assumed: `find_kernel`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from acemath_reward.engine.attention import Attention, CellAttention, CellMask, MakeAttention
from acemath_reward.engine.cells import cells_of
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.crew import crew_of
from acemath_reward.engine.device import Placement
from acemath_reward.engine.packing import Run, pack
from acemath_reward.engine.tiling import Tiling
from acemath_reward.ports import PromptGroup

_log = logging.getLogger(__name__)

_NEAR = 2.0**-5
"""Four units in bfloat16's last place, of the value and of 1: two kernels round at different places.

A wrong mask is off by whole values.
"""


class Kernel(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, as far as it is used: causal, aligned at each sequence's end."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        """`[T_q, heads, head_dim]`.

        Args:
            query: `[T_q, heads, head_dim]`.
            key: `[T_k, kv_heads, head_dim]`.
            value: as `key`.
            queries: where each sequence's queries begin, and the end, `[sequences + 1]`, int32.
            keys: likewise.
            max_q: most queries of a sequence.
            max_k: most keys of a sequence.
        """
        ...


def flash(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, max_q: int, max_k: int) -> Tensor:
    """See `Kernel`."""
    found = varlen_attn(
        query, key, value, queries, keys, max_q, max_k, window_size=(-1, 0), enable_gqa=True, num_splits=1
    )
    assert isinstance(found, Tensor)
    return found


class VarlenAttention:
    """As `attention.CellAttention`, one call a layer.

    Args:
        runs: what attends to what.
        rows: of the queries, fillers among them.
        fresh: where each layer puts its keys and values, `[rows of the pass, 2, kv_heads, head_dim]`.
        kernel: computes.
        config: shapes.

    Attributes:
        query: where each layer puts its queries, `[kv_heads, rows, group, head_dim]`.
    """

    def __init__(self, runs: Sequence[Run], rows: int, fresh: Tensor, kernel: Kernel, config: EngineConfig) -> None:
        self._fresh, self._kernel = fresh, kernel
        group = config.heads // config.kv_heads
        self._query = fresh.new_empty(rows, config.kv_heads, group, config.head_dim)
        self.query = self._query.transpose(0, 1)
        self._out = fresh.new_zeros(rows, group, config.kv_heads, config.head_dim)  # fillers stay zero
        spans = [span for run in runs for span in run.spans]
        self._lengths = [span.rows.stop - span.rows.start for span in spans], [span.keys for span in spans]
        self._first_query, self._first_key = (_starts(lengths, fresh.device) for lengths in self._lengths)
        self._kept, places = _places(runs, len(fresh))
        self._places = torch.tensor(places, device=fresh.device)

    def __call__(self, layer: int) -> Tensor:
        """`[rows, group * kv_heads * head_dim]` for the queries and fresh keys there are now.

        Args:
            layer: which layer's kept keys and values lie before the fresh ones.
        """
        known = torch.cat([self._fresh, *(kept[layer] for kept in self._kept)]) if self._kept else self._fresh
        key, value = known[self._places].unbind(1)
        queries, keys = self._lengths
        query = self._query[: sum(queries)].flatten(1, 2)
        found = self._kernel(query, key, value, self._first_query, self._first_key, max(queries), max(keys))
        self._out[: len(query)] = found.view(len(query), *self._query.shape[1:]).transpose(1, 2)
        return self._out.flatten(1)


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where each sequence begins, and the end of the last, `[sequences + 1]`."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _places(runs: Sequence[Run], fresh: int) -> tuple[list[Tensor], list[int]]:
    """The kept tensors that are needed, and where each cell's keys lie in `fresh` rows with those behind them."""
    kept: dict[int, tuple[Tensor, int]] = {}
    places: list[int] = []
    end = fresh
    for run in runs:
        own: list[int] = []
        for part in run.before:  # `[layers, tokens, …]`; a prompt's are shared by its candidates
            if id(part) not in kept:
                kept[id(part)] = part, end
                end += part.shape[1]
            own += range(kept[id(part)][1], kept[id(part)][1] + part.shape[1])
        for rows in run.rows:
            own += range(rows.start, rows.stop)
        for span in run.spans:
            places += own[: span.keys]
    return [part for part, _ in kept.values()], places


def attention_of(config: EngineConfig, placement: Placement) -> tuple[str, MakeAttention]:
    """How attention is computed on this device (`varlen` or `cells`), and what makes it for a pass."""
    mask = CellMask(config.max_tokens, config.heads // config.kv_heads, placement)
    kernel = find_kernel(config, placement, mask)
    if kernel is None:
        crew = crew_of(placement.threads)
        return "cells", lambda runs, rows, fresh: CellAttention(runs, rows, fresh, mask, config, crew)
    return "varlen", lambda runs, rows, fresh: VarlenAttention(runs, rows, fresh, kernel, config)


def find_kernel(config: EngineConfig, placement: Placement, mask: CellMask) -> Kernel | None:
    """The device's kernel if it has one that computes what cell by cell gives, and each cell free of its mates."""
    if placement.device.type != "cuda" or placement.dtype == torch.float32:
        return None  # Flash Attention has 16-bit formats only
    try:
        right = is_right(flash, config, placement, mask)
    except (RuntimeError, NotImplementedError) as error:  # no such kernel for this device or head
        _log.warning("attention is computed cell by cell: the kernel for all cells at once failed: %s", error)
        return None
    if not right:
        _log.warning("attention is computed cell by cell: the kernel for all cells at once gives something else")
    return flash if right else None


def is_right(kernel: Kernel, config: EngineConfig, placement: Placement, mask: CellMask) -> bool:
    """Whether the kernel is near to attention cell by cell, and gives cells alone the bits that they have together."""
    cell = placement.cell_tokens + placement.cell_tokens // 8
    prompt = min(cell, config.max_tokens // 2)
    second = min(cell, config.max_tokens - prompt)
    drawn = _Drawn.of(prompt + second // 2 + second, config, placement)
    lengths, without = (prompt, second // 2, second), (prompt, 0, second)

    def varlen(runs: Sequence[Run], rows: int, fresh: Tensor) -> Attention:
        return VarlenAttention(runs, rows, fresh, kernel, config)

    def cells(runs: Sequence[Run], rows: int, fresh: Tensor) -> Attention:
        return CellAttention(runs, rows, fresh, mask, config, crew_of(1))

    together = drawn.attended(varlen, lengths, placement)
    near = torch.allclose(together, drawn.attended(cells, lengths, placement), rtol=_NEAR, atol=_NEAR)
    return near and torch.equal(together[-second:], drawn.attended(varlen, without, placement)[-second:])


@dataclass(frozen=True)
class _Drawn:
    """Random queries `[kv_heads, rows, group, head_dim]`, and keys and values `[rows, 2, kv_heads, head_dim]`."""

    queries: Tensor
    fresh: Tensor

    @classmethod
    def of(cls, rows: int, config: EngineConfig, placement: Placement) -> _Drawn:
        kv_heads, group = config.kv_heads, config.heads // config.kv_heads
        generator = torch.Generator().manual_seed(0)
        shapes = (kv_heads, rows, group, config.head_dim), (rows, 2, kv_heads, config.head_dim)
        drawn = (torch.randn(shape, generator=generator) for shape in shapes)
        return cls(*(tensor.to(placement.device, placement.dtype) for tensor in drawn))

    def attended(self, make: MakeAttention, lengths: tuple[int, int, int], placement: Placement) -> Tensor:
        """Attention over the first rows as a prompt and the last ones as two candidates, `[rows, …]`."""
        prompt, first, second = lengths
        group = PromptGroup((0,) * prompt, tuple((0,) * length for length in (first, second) if length))
        batch = pack(cells_of(group, placement.cell_tokens), Tiling(1, (1,)), trim=True)
        assert batch is not None
        everything = len(self.fresh)
        rows = [*range(prompt + first), *range(everything - second, everything)]
        attention = make(batch.runs, len(rows), self.fresh[rows])
        attention.query.copy_(self.queries[:, rows])
        return attention(0)
