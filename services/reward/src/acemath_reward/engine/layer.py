"""A decoder layer, computed tile by tile so that what lies between two products stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from acemath_reward.engine.attention import Attention
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import Placement
from acemath_reward.engine.elementwise import Elementwise
from acemath_reward.engine.linear import GatedLinear, TiledLinear
from acemath_reward.engine.tiling import Trial

Tiles = Sequence[Tensor]
"""Rows of a pass, a tile in each tensor (`tiling.Tiling.cut`)."""
Keep = Callable[[Tensor], None]
"""Takes the keys and values of a layer, `[rows, 2, kv_heads, head_dim]`, and copies what must outlive the pass."""


class DecoderLayer:
    """A pre-norm decoder layer with grouped-query attention and a gated MLP; q, k and v are one product.

    Args:
        tensors: the layer's tensors, names without the `model.layers.<i>.` before them.
        config: shapes.
        placement: device, format and tile.
        index: which layer it is.
        between: what is computed between products.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: EngineConfig,
        placement: Placement,
        index: int,
        between: Elementwise,
    ) -> None:
        self._tensors, self._config, self._placement = tensors, config, placement
        self._index, self._between = index, between
        self._make_projections()
        self._out = TiledLinear(self._output_weight(), None, placement)
        self._gated = GatedLinear(tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"], placement)
        self._down = TiledLinear(tensors["mlp.down_proj.weight"], None, placement)
        self._attention_norm = tensors["input_layernorm.weight"].contiguous()
        self._mlp_norm = tensors["post_attention_layernorm.weight"].contiguous()
        self._tensors = {}  # the plain weights are not kept beside prepacked ones

    def __call__(self, x: Tiles, positions: Tiles, fresh: Tensor, attention: Attention, keep: Keep) -> Tiles:
        """The residual stream after this layer.

        Args:
            x: before it, `[tile, hidden]` each.
            positions: of the rows in their sequences, `[tile]` each.
            fresh: where its keys and values go, `[rows, 2, kv_heads, head_dim]`.
            attention: reads `fresh` and its own `query`.
            keep: takes `fresh` when it is filled.
        """
        for first, rows, places in _numbered(x, positions):
            heads = self._qkv(self._between.norm(rows, self._attention_norm))
            self._between.put_queries(heads, places, attention.query, first)
            self._between.put_keys_and_values(heads, places, fresh, first)
        keep(fresh)
        return self._complete(x, attention(self._index))

    def trials(self) -> list[Trial]:
        """Its products, each of its shapes with what is fused into it (`tiling.find_tiling`)."""
        hidden, between = self._config.hidden_size, self._config.heads * self._config.head_dim
        wide = self._config.intermediate_size
        return [
            *(Trial(hidden, projection) for projection in self._projections()),
            Trial(between, lambda x: self._out.plus(x, _as_wide_as(x, hidden))),
            Trial(hidden, self._gated),
            Trial(wide, lambda x: self._down.plus(x, _as_wide_as(x, hidden))),
        ]

    def _make_projections(self) -> None:
        self._qkv = self._projection("qkv")

    def _projections(self) -> Sequence[TiledLinear]:
        return (self._qkv,)

    def _projection(self, letters: str) -> TiledLinear:
        weight = torch.cat([self._tensors[f"self_attn.{letter}_proj.weight"] for letter in letters])
        if not self._config.qkv_bias:
            return TiledLinear(weight, None, self._placement)
        bias = torch.cat([self._tensors[f"self_attn.{letter}_proj.bias"] for letter in letters])
        return TiledLinear(weight, bias, self._placement)

    def _output_weight(self) -> Tensor:
        """Its columns in the order in which attention leaves the heads: the first of every group, the second, ..."""
        weight, config = self._tensors["self_attn.o_proj.weight"], self._config
        by_head = weight.view(len(weight), config.kv_heads, -1, config.head_dim)
        return by_head.transpose(1, 2).reshape(weight.shape)

    def _complete(self, x: Tiles, attended: Tensor) -> Tiles:
        """Output projection, MLP and both residual additions."""
        out = []
        for rows, seen in zip(x, torch.split(attended, [len(tile) for tile in x]), strict=True):
            middle = self._out.plus(seen, rows)
            out.append(self._down.plus(self._gated(self._between.norm(middle, self._mlp_norm)), middle))
        return out


class LastLayer(DecoderLayer):
    """The last layer: keys and values for all rows, everything else only for what is asked."""

    def _make_projections(self) -> None:
        self._q, self._kv = self._projection("q"), self._projection("kv")

    def _projections(self) -> Sequence[TiledLinear]:
        return self._q, self._kv

    def put_keys_and_values(self, x: Tiles, positions: Tiles, fresh: Tensor) -> None:
        """Fill `fresh`; arguments as for a call."""
        for first, rows, places in _numbered(x, positions):
            heads = self._kv(self._between.norm(rows, self._attention_norm))
            self._between.put_keys_and_values(heads, places, fresh, first)

    def attend(self, x: Tiles, positions: Tiles, attention: Attention) -> Tensor:
        """What attention gives for the queries of `x`, `[rows, heads * head_dim]`; arguments as for a call."""
        for first, rows, places in _numbered(x, positions):
            heads = self._q(self._between.norm(rows, self._attention_norm))
            self._between.put_queries(heads, places, attention.query, first)
        return attention(self._index)

    def complete(self, x: Tiles, attended: Tensor) -> Tiles:
        """The residual stream after this layer, of the rows `x` before it that `attend` gave `attended` for."""
        return self._complete(x, attended)


def _as_wide_as(x: Tensor, width: int) -> Tensor:
    """Something to add to a product of `x`, `[rows, width]`."""
    return x[:, :1].expand(-1, width).contiguous()


def _numbered(x: Tiles, positions: Tiles) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The tiles and positions of their rows, each with its first row."""
    first = 0
    for rows, places in zip(x, positions, strict=True):
        yield first, rows, places
        first += len(rows)
