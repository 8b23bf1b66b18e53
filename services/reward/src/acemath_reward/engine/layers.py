"""The parts of a decoder layer, each giving a row the same bits whatever other rows are computed beside it.

Numerics follow transformers' implementation of Llama and Qwen2: RMSNorm in float32 and cast back before the weight,
rotary tables in float32 and cast, residual stream in the model's format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acemath_reward.engine.packing import Segment


class TiledLinear:
    """A linear map computed in matrix products of one fixed number of rows.

    A library chooses its kernel, and with it the order of additions, by the shape of the product: on AMX bfloat16 and
    on every float32 path a row's bits change with the number of rows beside it. One shape means one kernel.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or None.
        tile: rows of one product.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, tile: int) -> None:
        self._weight, self._bias, self._tile = weight.contiguous(), bias, tile

    def __call__(self, x: Tensor) -> Tensor:
        """`x W^T + b` for `x` of `[rows, in]`, rows a multiple of the tile."""
        out = x.new_empty(x.shape[0], self._weight.shape[0])
        for start in range(0, x.shape[0], self._tile):
            rows = slice(start, start + self._tile)
            out[rows] = F.linear(x[rows], self._weight, self._bias)
        return out


class RMSNorm:
    """Root-mean-square norm (Zhang & Sennrich 2019), the mean in float32.

    Args:
        weight: `[hidden]`.
        eps: added to the mean square.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        """The normed rows, in the format of `x`."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return self._weight * (wide * scale).to(x.dtype)


class RotaryTable:
    """Cosines and sines of the rotary embedding (Su et al. 2021), computed once for every position.

    Args:
        head_dim: width of a head.
        theta: base of the frequencies.
        positions: number of positions.
        dtype: of the table.
        device: of the table.
    """

    def __init__(self, head_dim: int, theta: float, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
        both = torch.cat((angles, angles), dim=-1)
        self._cos, self._sin = both.cos().to(device, dtype), both.sin().to(device, dtype)

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of these positions, each `[rows, 1, head_dim]`."""
        return self._cos[positions][:, None], self._sin[positions][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` of `[rows, heads, head_dim]` (half-split layout, as transformers stores it)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Attention by segment: one call of one shape for each, so that neither mates nor their number enter.

    Args:
        query: `[rows, heads, head_dim]`.
        key: `[rows, kv_heads, head_dim]`.
        value: as `key`.
        segments: which rows attend to which.

    Returns:
        `[rows, heads * head_dim]`; zero in the rows that fill the last tile.
    """
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    grouped = query.shape[1] != key.shape[1]
    for segment in segments:
        keys, values = _behind_prompt(key, segment), _behind_prompt(value, segment)
        result = F.scaled_dot_product_attention(
            _heads_first(query[segment.rows]),
            _heads_first(keys),
            _heads_first(values),
            attn_mask=segment.mask,
            is_causal=segment.mask is None,
            enable_gqa=grouped,
        )
        out[segment.rows] = result[0].transpose(0, 1)
    return out.flatten(1)


def _behind_prompt(x: Tensor, segment: Segment) -> Tensor:
    return x[segment.rows] if segment.prompt is None else torch.cat((x[segment.prompt], x[segment.rows]))


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]
