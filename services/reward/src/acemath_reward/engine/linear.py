"""Linear maps on a tile of rows, prepacked where the library can."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acemath_reward.engine.device import Placement


class TiledLinear:
    """A linear map that is only ever computed on a tile of rows (`tiling`).

    A library chooses its kernel, and with it the order of additions, by the shape of the product: on AMX bfloat16 and
    on every float32 path a row's bits change with the number of rows beside it, somewhere. And since the shape is
    known, a bfloat16 weight on a CPU is laid out for its kernel once (oneDNN's blocked format) instead of at every
    call; the plain copy is not kept.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or None.
        placement: device, format, rows of a product, and whether to prepack.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement) -> None:
        self._bias = bias
        self._blocked = _blocked(weight, placement)
        self._weight = weight.new_empty(0) if self._blocked is not None else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x W^T + b` for `x` of `[tile, in]`, contiguous."""
        if self._blocked is not None:
            return _then(x, self._blocked, self._bias, "none")
        return F.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual + x W^T + b` for `residual` of `[tile, out]`; rounded once where the weight is prepacked."""
        if self._blocked is not None:
            return _with(x, residual, self._blocked, self._bias, "add")
        return self(x).add_(residual)


class GatedLinear:
    """`silu(x G^T) * (x U^T)`: the first half of a gated MLP (Shazeer 2020), on a tile of rows.

    With prepacked weights the activation and the multiplication are part of the two products: rounded twice, not four
    times. Without, both are one product.

    Args:
        gate: `[wide, in]`.
        up: `[wide, in]`.
        placement: as for `TiledLinear`.
    """

    def __init__(self, gate: Tensor, up: Tensor, placement: Placement) -> None:
        self._gate, self._up = _blocked(gate, placement), _blocked(up, placement)
        self._both: TiledLinear | None = None
        if self._gate is None or self._up is None:
            self._gate = self._up = None
            self._both = TiledLinear(torch.cat((gate, up)), None, placement)

    def __call__(self, x: Tensor) -> Tensor:
        """The gated activations of `x` of `[tile, in]`: `[tile, wide]`."""
        if self._gate is not None and self._up is not None:
            return _with(x, _then(x, self._gate, None, "swish"), self._up, None, "mul")
        assert self._both is not None
        first, second = self._both(x).chunk(2, dim=-1)
        return F.silu(first).mul_(second)


def prepacks(placement: Placement) -> bool:
    """Whether weights are prepacked here: bfloat16 on a CPU with oneDNN (a float32 oneDNN product is not faster)."""
    wanted = placement.prepack and placement.device.type == "cpu" and placement.dtype is torch.bfloat16
    return wanted and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _blocked(weight: Tensor, placement: Placement) -> Tensor | None:
    """The prepacked weight; None where it is not wanted or the library refuses this one."""
    if not prepacks(placement):
        return None
    probe = weight.new_zeros(placement.row_tile, weight.shape[1])
    residual = weight.new_zeros(placement.row_tile, weight.shape[0])
    try:
        blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, placement.row_tile)
        _then(probe, blocked, None, "swish")
        _with(probe, residual, blocked, None, "add")
    except (RuntimeError, NotImplementedError):  # this shape or this CPU is not supported: the plain product serves
        return None
    return blocked


def _then(x: Tensor, blocked: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`activation(x W^T + b)`; `none` or `swish`, which is SiLU."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocked, bias, activation, [], "")
    return found


def _with(x: Tensor, other: Tensor, blocked: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    """`(x W^T + b) operation other`; `add` or `mul`, before the product is rounded."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, blocked, bias, operation)
    return found
