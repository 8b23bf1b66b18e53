"""A decoder layer, computed tile by tile so that what lies between two products stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from acemath_reward.engine.attention import CellMask, attend
from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import Placement
from acemath_reward.engine.layers import RMSNorm, rotate
from acemath_reward.engine.linear import GatedLinear, TiledLinear, tiles
from acemath_reward.engine.packing import Asked, Packed

Rotary = tuple[Tensor, Tensor]
Keep = Callable[[Tensor], None]
"""Takes the keys and values of a layer, `[rows, 2, kv_heads, head_dim]`, and copies what must outlive the pass."""


class DecoderLayer:
    """A pre-norm decoder layer with grouped-query attention and a gated MLP; q, k and v are one product.

    Args:
        tensors: the layer's tensors, names without the `model.layers.<i>.` before them.
        config: shapes.
        placement: device, format and tile.
        index: which layer it is.
        mask: of a cell.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], config: EngineConfig, placement: Placement, index: int, mask: CellMask
    ) -> None:
        self._tensors, self._config, self._placement = tensors, config, placement
        self._index, self._mask, self._tile = index, mask, placement.row_tile
        self._make_projections()
        self._out = TiledLinear(tensors["self_attn.o_proj.weight"], None, placement)
        self._gated = GatedLinear(tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"], placement)
        self._down = TiledLinear(tensors["mlp.down_proj.weight"], None, placement)
        self._attention_norm = RMSNorm(tensors["input_layernorm.weight"], config.norm_eps)
        self._mlp_norm = RMSNorm(tensors["post_attention_layernorm.weight"], config.norm_eps)
        self._tensors = {}  # the plain weights are not kept beside prepacked ones

    def __call__(self, x: Tensor, batch: Packed, rotary: Rotary, keep: Keep) -> Tensor:
        """The residual stream after this layer, `[rows, hidden]`."""
        query, fresh = self._project(x, rotary)
        keep(fresh)
        return self._complete(x, attend(query, fresh, self._index, batch.runs, self._mask))

    def _make_projections(self) -> None:
        self._qkv = self._projection("qkv")

    def _projection(self, letters: str) -> TiledLinear:
        weight = torch.cat([self._tensors[f"self_attn.{letter}_proj.weight"] for letter in letters])
        if not self._config.qkv_bias:
            return TiledLinear(weight, None, self._placement)
        bias = torch.cat([self._tensors[f"self_attn.{letter}_proj.bias"] for letter in letters])
        return TiledLinear(weight, bias, self._placement)

    def _project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Rotated queries `[rows, heads, head_dim]`; rotated keys, and values, `[rows, 2, kv_heads, head_dim]`."""
        config = self._config
        turned = config.heads + config.kv_heads
        query = x.new_empty(x.shape[0], config.heads, config.head_dim)
        fresh = self._new_keys_and_values(x)
        for rows in tiles(x.shape[0], self._tile):
            heads = self._qkv(self._attention_norm(x[rows])).view(self._tile, -1, config.head_dim)
            both = rotate(heads[:, :turned], rotary[0][rows], rotary[1][rows])
            query[rows], fresh[rows, 0], fresh[rows, 1] = (
                both[:, : config.heads],
                both[:, config.heads :],
                heads[:, turned:],
            )
        return query, fresh

    def _new_keys_and_values(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], 2, self._config.kv_heads, self._config.head_dim)

    def _complete(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and both residual additions for `x` of `[rows, hidden]`."""
        out = torch.empty_like(x)
        for rows in tiles(x.shape[0], self._tile):
            middle = self._out.plus(attended[rows], x[rows])
            out[rows] = self._down.plus(self._gated(self._mlp_norm(middle)), middle)
        return out


class LastLayer(DecoderLayer):
    """The last layer: keys and values for all rows, everything else only for what is asked."""

    def _make_projections(self) -> None:
        self._q, self._kv = self._projection("q"), self._projection("kv")

    def keys_and_values(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Rotated keys, and values, `[rows, 2, kv_heads, head_dim]`."""
        fresh, kv_heads = self._new_keys_and_values(x), self._config.kv_heads
        for rows in tiles(x.shape[0], self._tile):
            heads = self._kv(self._attention_norm(x[rows])).view(self._tile, -1, self._config.head_dim)
            fresh[rows, 0] = rotate(heads[:, :kv_heads], rotary[0][rows], rotary[1][rows])
            fresh[rows, 1] = heads[:, kv_heads:]
        return fresh

    def outputs(self, x: Tensor, fresh: Tensor, asked: Asked, rotary: Rotary) -> Tensor:
        """The residual stream after this layer at `asked.out`, `[outputs, hidden]`.

        Args:
            x: residual stream before the layer, all rows of the pass.
            fresh: `keys_and_values` of it.
            asked: the rows.
            rotary: of all rows of the pass.
        """
        wanted = x[asked.rows]
        query = self._queries(wanted, (rotary[0][asked.rows], rotary[1][asked.rows]))
        attended = attend(query, fresh, self._index, asked.runs, self._mask)
        return self._complete(wanted[asked.out], attended[asked.out])

    def _queries(self, x: Tensor, rotary: Rotary) -> Tensor:
        query = x.new_empty(x.shape[0], self._config.heads, self._config.head_dim)
        for rows in tiles(x.shape[0], self._tile):
            heads = self._q(self._attention_norm(x[rows])).view(self._tile, -1, self._config.head_dim)
            query[rows] = rotate(heads, rotary[0][rows], rotary[1][rows])
        return query
