"""Norm and rotary embedding, each giving a row the same bits whatever other rows are computed beside it.

Numerics follow transformers' implementation of Llama and Qwen2: RMSNorm in float32 and cast back before the weight,
rotary tables in float32 and cast, residual stream in the model's format.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        return (wide * scale).to(x.dtype).mul_(self._weight)


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
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), dim=-1).to(device, dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(device, dtype)  # the sign of `rotate`'s swapped halves

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of these positions, each `[rows, 1, head_dim]`."""
        return self._cos[positions][:, None], self._sin[positions][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` of `[rows, heads, head_dim]` (half-split layout, as transformers stores it)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos).add_(torch.cat((second, first), dim=-1).mul_(sin))
