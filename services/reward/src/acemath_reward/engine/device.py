"""Device, number format and threads: chosen once at load, said in the log and in `/readyz?verbose`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch

from acemath_reward.engine.allocator import keep_freed_memory

_log = logging.getLogger(__name__)

DtypeName = Literal["auto", "bfloat16", "float32"]

CPU_ROW_TILE = 256
CUDA_ROW_TILE = 1024
"""Rows of one matrix product, but for the last of a pass (`tiling`). Part of the numerics: replicas must agree on it.
On a CPU a row of a 135M model's layer takes 6.4 us in products of 256 rows, 6.2 in those of 512, 7.7 of 128, 10.2 of 64
(bfloat16, AMX, one thread); beyond 256 rows what lies between two products no longer fits in the cache."""

CELL_TOKENS = 64
"""Tokens of one attention call; see `cells`. Part of the numerics. Fewer leave less to compute after a live candidate's
last token, more make fewer calls: attention over 400 tokens behind 150 (9 heads of 64, bfloat16, AMX, busy machine)
takes 2.4 ms with 32, 2.6 with 64, 2.2 with 128 and 1.9 with 256."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how the engine computes.

    Attributes:
        device: torch device.
        dtype: of weights and activations; norms, softmax and the head are float32 in any case.
        row_tile: rows of one matrix product.
        cell_tokens: tokens of one attention call.
        prepack: lay weights out for their product once, where the library can.
        trim: compute the last layer's output only for rows that are scored; the bits are the same without.
        compiled: compute what lies between products in compiled loops, where the device is a CPU.
        threads: that share a pass on a CPU (`crew`); the bits are the same from any number.
    """

    device: torch.device
    dtype: torch.dtype
    row_tile: int
    cell_tokens: int = CELL_TOKENS
    prepack: bool = True
    trim: bool = True
    compiled: bool = True
    threads: int = 1


def place(
    device: str,
    dtype: DtypeName,
    *,
    threads: int,
    row_tile: int | None = None,
    cell_tokens: int = CELL_TOKENS,
    prepack: bool = True,
    trim: bool = True,
    compiled: bool = True,
) -> Placement:
    """Decide device and number format; an operator of torch has one thread in this process from now on, on a CPU.

    Args:
        device: `cpu`, `cuda` or `cuda:<i>`.
        dtype: `auto` takes bfloat16 where the device computes in it, float32 elsewhere.
        threads: see `Placement`.
        row_tile: None for the device's default.
        cell_tokens: see `Placement`, as the next three.
        prepack: for measurements without.
        trim: for measurements without.
        compiled: for measurements without.
    """
    where = torch.device(device)
    if where.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    wanted = _dtype(where, dtype)
    tile = row_tile or (CPU_ROW_TILE if where.type == "cpu" else CUDA_ROW_TILE)
    sharing = threads if where.type == "cpu" else 1
    return Placement(where, wanted, tile, cell_tokens, prepack, trim, compiled, sharing)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 (AVX512-BF16, AMX, Arm bf16, or CUDA), not only stores it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _dtype(device: torch.device, name: DtypeName) -> torch.dtype:
    if name == "float32":
        return torch.float32
    if name == "bfloat16" or has_bfloat16(device):
        return torch.bfloat16
    _log.warning(
        "this CPU has no bfloat16 arithmetic; scores are computed in float32: slower, still independent of the batch, "
        "and not the bits of a bfloat16 replica"
    )
    return torch.float32
