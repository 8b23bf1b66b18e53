"""What lies between two matrix products: norms, rotary embedding, and putting heads where attention reads them.

Each row gets the same bits whatever other rows are computed beside it. Numerics follow transformers' implementation
of Llama and Qwen2: RMSNorm in float32 and cast back before the weight; rotary tables rounded to the model's format.

Two implementations of one interface. On a CPU the compiled one: each operation goes through the cache once, where a
chain of tensor operators goes once for each of them; beside AMX products that was half of a pass. On other devices
(and for measurements) plain tensor operators. They round at different places, so their bits differ.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from acemath_reward.engine.config import EngineConfig
from acemath_reward.engine.device import Placement


class Elementwise(Protocol):
    """See the module. A tile is some rows (`tiling`); `first` is its first row in the pass."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm (Zhang & Sennrich 2019) of `[rows, hidden]`, the mean in float32."""
        ...

    def put_queries(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """Rotate (Su et al. 2021) a tile's queries into their places.

        Args:
            heads: `[tile, width]`; a row begins with its queries, `[kv_heads * group * head_dim]`.
            positions: of the tile's rows in their sequences, `[tile]`.
            out: `[kv_heads, rows, group, head_dim]`.
            first: see the class.
        """
        ...

    def put_keys_and_values(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """Rotate a tile's keys, and copy its values, into their places.

        Args:
            heads: `[tile, width]`; a row ends with its keys, then its values, `[kv_heads * head_dim]` each.
            positions: as for `put_queries`.
            out: `[rows, 2, kv_heads, head_dim]`.
            first: see the class.
        """
        ...


class TensorOperators:
    """The interface in torch's operators.

    Args:
        config: shapes and constants.
        placement: device and format.
    """

    def __init__(self, config: EngineConfig, placement: Placement) -> None:
        self._config = config
        cos, sin = rotary_tables(config, placement.dtype)
        self._cos = torch.cat((cos, cos), dim=-1).to(placement.device)
        self._sin = torch.cat((-sin, sin), dim=-1).to(placement.device)  # the sign of the swapped halves

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """See the interface, as for all that follows."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._config.norm_eps)
        return (wide * scale).to(x.dtype).mul_(weight)

    def put_queries(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """By key head, so that those who share one lie together."""
        kv_heads, _, group, head_dim = out.shape
        queries = heads[:, : kv_heads * group * head_dim].view(len(heads), -1, head_dim)
        turned = self._rotate(queries, positions).view(-1, kv_heads, group, head_dim)
        out[:, first : first + len(heads)] = turned.transpose(0, 1)

    def put_keys_and_values(self, heads: Tensor, positions: Tensor, out: Tensor, first: int) -> None:
        """Keys before values."""
        _, _, kv_heads, head_dim = out.shape
        both = heads[:, -2 * kv_heads * head_dim :].view(len(heads), 2, kv_heads, head_dim)
        rows = slice(first, first + len(heads))
        out[rows, 0] = self._rotate(both[:, 0], positions)
        out[rows, 1] = both[:, 1]

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate `x` of `[rows, heads, head_dim]` (half-split layout, as transformers stores it)."""
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        first, second = x.chunk(2, dim=-1)
        return (x * cos).add_(torch.cat((second, first), dim=-1).mul_(sin))


def rotary_tables(config: EngineConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, `[positions, head_dim / 2]`, rounded to `dtype`."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # in transformers' order: at 300 rad a last bit is 3e-5
    angles = torch.arange(config.max_tokens, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)
