"""Device, number format and threads: chosen once at load, said in the log and in `/readyz?verbose`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch

_log = logging.getLogger(__name__)

DtypeName = Literal["auto", "bfloat16", "float32"]

CPU_ROW_TILE = 128
CUDA_ROW_TILE = 1024
"""Rows of one matrix product; see `layers.TiledLinear`. Part of the numerics: replicas must agree on it."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how the engine computes.

    Attributes:
        device: torch device.
        dtype: of weights and activations; norms, softmax and the head are float32 in any case.
        row_tile: rows of one matrix product.
    """

    device: torch.device
    dtype: torch.dtype
    row_tile: int


def place(device: str, dtype: DtypeName, *, threads: int, row_tile: int | None = None) -> Placement:
    """Decide device and number format, and set the process's threads for one operator.

    Args:
        device: `cpu`, `cuda` or `cuda:<i>`.
        dtype: `auto` takes bfloat16 where the device computes in it, float32 elsewhere.
        threads: threads of one CPU operator.
        row_tile: None for the device's default.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    wanted = _dtype(where, dtype)
    tile = row_tile or (CPU_ROW_TILE if where.type == "cpu" else CUDA_ROW_TILE)
    return Placement(device=where, dtype=wanted, row_tile=tile)


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
