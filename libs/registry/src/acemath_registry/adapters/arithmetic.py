"""W + scaling · B A with the same bits on every machine.

Everything is float64, one element-wise operation of IEEE 754 after the other, in one order: the products of the first
column of B and the first row of A, then those of the second added to it, and so on; times the scaling; plus W; rounded
once, to nearest and ties to even, into the format of W. A matrix product would be faster, but a BLAS chooses its order
of summation, and whether it contracts to fused operations, by processor. Products of two float32 (so also of two
bfloat16 or float16) are exact in float64. A process whose processor flushes subnormal numbers to zero would differ in
weights below 1.2e-38; its copy would not have the published digests and be refused.

numpy is needed only here (the extra `adapters`), and this module is imported when something is merged.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_PLAIN: Final = {"F16": "<f2", "F32": "<f4"}


def numbers(dtype: str, data: bytes, columns: int) -> Matrix:
    """The little-endian numbers of rows of a tensor, exactly.

    Args:
        dtype: BF16, F16 or F32, as safetensors names it.
        data: the rows' bytes.
        columns: numbers in a row.
    """
    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).astype(np.float64).reshape(-1, columns)
    return np.frombuffer(data, _PLAIN[dtype]).astype(np.float64).reshape(-1, columns)


def rounded(dtype: str, values: Matrix) -> bytes:
    """The numbers' bytes in a format of `numbers`, each rounded once; what is too large becomes infinity."""
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            return _to_bfloat16(values).astype("<u2").tobytes()
        return values.astype(_PLAIN[dtype]).tobytes()


def changed(weights: Matrix, up: Matrix, down: Matrix, scaling: float) -> Matrix:
    """Some rows of W + scaling · B A.

    Args:
        weights: (rows, in) of W.
        up: (rows, rank), the same rows of B.
        down: (rank, in), A.
        scaling: see `LoraSettings`.
    """
    total, product = np.zeros_like(weights), np.empty_like(weights)
    for k in range(down.shape[0]):
        np.multiply(up[:, k, None], down[None, k, :], out=product)
        np.add(total, product, out=total)
    np.multiply(total, scaling, out=total)
    return np.add(total, weights, out=total)


def _to_bfloat16(values: Matrix) -> NDArray[Any]:
    """The upper halves of float32 numbers.

    Rounding twice can differ from rounding once, but not when the first time rounds to odd (Boldo and Melquiond 2008,
    https://doi.org/10.1109/TC.2007.70819).
    """
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    bits -= np.abs(single.astype(np.float64)) > np.abs(values)  # towards zero
    bits |= bits.view(np.float32).astype(np.float64) != values  # the last bit says that something was cut off
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return bits >> np.uint32(16)
