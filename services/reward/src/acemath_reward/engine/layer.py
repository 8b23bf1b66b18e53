"""A decoder layer, computed tile by tile so that what lies between two products stays in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acemath_reward.engine.attention import Attention
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import Placement
from acemath_reward.engine.elementwise import Elementwise
from acemath_reward.engine.linear import GatedLinear, TiledLinear
from acemath_reward.engine.tiling import Trial


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows of a pass (`tiling`).

    Attributes:
        first: the first one's place in the pass.
        rows: the residual stream, `[tile, hidden]`.
        positions: of the rows in their sequences, `[tile]`.
    """

    first: int
    rows: Tensor
    positions: Tensor


class DecoderLayer:
    """A pre-norm decoder layer with grouped-query attention and a gated MLP; q, k and v are one product.

    Args:
        tensors: the layer's tensors, names without the `model.layers.<i>.` before them.
        config: shapes.
        placement: device, format and tile.
        between: what is computed between products.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: EngineConfig,
        placement: Placement,
        between: Elementwise,
    ) -> None:
        self._tensors, self._config, self._placement = tensors, config, placement
        self._between = between
        self._make_projections()
        self._out = TiledLinear(self._output_weight(), None, placement)
        self._gated = GatedLinear(tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"], placement)
        self._down = TiledLinear(tensors["mlp.down_proj.weight"], None, placement)
        self._attention_norm = tensors["input_layernorm.weight"].contiguous()
        self._mlp_norm = tensors["post_attention_layernorm.weight"].contiguous()
        self._tensors = {}  # the plain weights are not kept beside prepacked ones

    def put(self, tile: Tile, fresh: Tensor, attention: Attention) -> None:
        """What of a tile attention needs: its queries into `attention.query`, its keys and values into `fresh`.

        Args:
            tile: the residual stream before this layer.
            fresh: `[rows of the pass, 2, kv_heads, head_dim]`.
            attention: of this layer.
        """
        heads = self._qkv(self._between.norm(tile.rows, self._attention_norm))
        self._between.put_queries(heads, tile.positions, attention.query, tile.first)
        self._between.put_keys_and_values(heads, tile.positions, fresh, tile.first)

    def complete(self, rows: Tensor, attended: Tensor) -> Tensor:
        """A tile after this layer: output projection, MLP and both residual additions.

        Args:
            rows: before it, `[tile, hidden]`.
            attended: what attention gave for them, `[tile, heads * head_dim]`.
        """
        middle = self._out.plus(attended, rows)
        return self._down.plus(self._gated(self._between.norm(middle, self._mlp_norm)), middle)

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


class LastLayer(DecoderLayer):
    """The last layer: keys and values for all rows, everything else only for what is asked."""

    def _make_projections(self) -> None:
        self._q, self._kv = self._projection("q"), self._projection("kv")

    def _projections(self) -> Sequence[TiledLinear]:
        return self._q, self._kv

    def put(self, tile: Tile, fresh: Tensor, attention: Attention) -> None:
        """Only its keys and values: who asks for queries here says so by `put_queries`."""
        self.put_keys_and_values(tile, fresh)

    def put_keys_and_values(self, tile: Tile, fresh: Tensor) -> None:
        """Arguments as for `put`."""
        heads = self._kv(self._between.norm(tile.rows, self._attention_norm))
        self._between.put_keys_and_values(heads, tile.positions, fresh, tile.first)

    def put_queries(self, tile: Tile, attention: Attention) -> None:
        """Only the queries; arguments as for `put`."""
        heads = self._q(self._between.norm(tile.rows, self._attention_norm))
        self._between.put_queries(heads, tile.positions, attention.query, tile.first)


def _as_wide_as(x: Tensor, width: int) -> Tensor:
    """Something to add to a product of `x`, `[rows, width]`."""
    return x[:, :1].expand(-1, width).contiguous()
