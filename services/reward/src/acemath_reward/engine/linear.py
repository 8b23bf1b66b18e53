"""Linear maps on one fixed number of rows, prepacked where the library can."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from acemath_reward.engine.device import Placement

_Product = Callable[[Tensor], Tensor]


class TiledLinear:
    """A linear map that is only ever computed on `row_tile` rows at once.

    A library chooses its kernel, and with it the order of additions, by the shape of the product: on AMX bfloat16 and
    on every float32 path a row's bits change with the number of rows beside it. One shape means one kernel. And since
    the shape is known, a bfloat16 weight on a CPU is laid out for that kernel once (oneDNN's blocked format) instead
    of at every call; the plain copy is not kept.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or None.
        placement: device, format, rows of a product, and whether to prepack.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement) -> None:
        self._product = _packed(weight, bias, placement) or _plain(weight.contiguous(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """`x W^T + b` for `x` of `[row_tile, in]`, contiguous."""
        return self._product(x)


def tiles(rows: int, tile: int) -> Iterator[slice]:
    """The tiles of `rows` rows, a multiple of `tile`.

    Everything between two products is computed tile by tile too, so that it stays in the cache.
    """
    for start in range(0, rows, tile):
        yield slice(start, start + tile)


def prepacks(placement: Placement) -> bool:
    """Whether weights are prepacked here: bfloat16 on a CPU with oneDNN (a float32 oneDNN product is not faster)."""
    wanted = placement.prepack and placement.device.type == "cpu" and placement.dtype is torch.bfloat16
    return wanted and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _plain(weight: Tensor, bias: Tensor | None) -> _Product:
    return lambda x: F.linear(x, weight, bias)


def _packed(weight: Tensor, bias: Tensor | None, placement: Placement) -> _Product | None:
    """The product with a prepacked weight; None where it is not wanted or the library refuses this one."""
    if not prepacks(placement):
        return None
    probe = weight.new_zeros(placement.row_tile, weight.shape[1])
    try:
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, placement.row_tile)
        torch.ops.mkldnn._linear_pointwise(probe, blocked, bias, "none", [], "")
    except (RuntimeError, NotImplementedError):  # this shape or this CPU is not supported: the plain product serves
        return None
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
