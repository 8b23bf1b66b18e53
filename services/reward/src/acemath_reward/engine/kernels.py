"""The compiled loops behind `compiled.py`: machine code made at load for this CPU and one number format.

A loop handles one row after another, and the code of a row is the same for every row: no bits depend on a row's
place or on how many there are. Sums may be taken in any order (`reassoc`), which the compiler fixes once. Arrays are
flat. What 16 lanes do not cover (heads and rows of odd widths) is done number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from acemath_reward.engine import lanes

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_U = np.uint64  # of every index: one that might be negative costs a test
_LANES = _U(lanes.LANES)


@intrinsic
def _bits_to_float(context: Any, bits: Any) -> Any:
    """uint32 -> the float32 of these bits."""

    def make(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.uint32), make


@intrinsic
def _float_to_bits(context: Any, number: Any) -> Any:
    """float32 -> its bits, uint32."""

    def make(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.uint32(types.float32), make


@numba.njit(**_OPTIONS, inline="always")
def _load_bfloat16(bits: Any) -> Any:
    return _bits_to_float(np.uint32(bits) << np.uint32(16))


@numba.njit(**_OPTIONS, inline="always")
def _store_bfloat16(number: Any) -> Any:
    """As `lanes`."""
    bits = _float_to_bits(number)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(**_OPTIONS, inline="always")
def _same(number: Any) -> Any:
    return number


_FORMATS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Any]] = {
    "bfloat16": (_load_bfloat16, _store_bfloat16, types.uint16),
    "float32": (_same, _same, types.float32),
}
"""Format -> how a number is read as float32, how a float32 is written, and what an array of it holds."""


def make_norm(format_name: str) -> Any:
    """`norm(x, weight, eps, out)`, rows as wide as the weight: see `elementwise.Elementwise.norm`."""
    load, store, item = _FORMATS[format_name]
    scale16 = lanes.make_scale(format_name)

    @numba.njit(types.void(item[::1], item[::1], types.float32, item[::1]), fastmath={"reassoc"}, **_OPTIONS)
    def norm(x: Any, weight: Any, eps: Any, out: Any) -> None:
        width = _U(weight.size)
        for row in range(_U(x.size) // width):
            start, total = row * width, np.float32(0.0)
            for k in range(width):
                number = load(x[start + k])
                total += number * number
            scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)
            for k in range(_U(0), width - width % _LANES, _LANES):
                scale16(x, start + k, scale, weight, k, out, start + k)
            for k in range(width - width % _LANES, width):
                out[start + k] = store(load(x[start + k]) * scale * load(weight[k]))

    return norm


def _make_rotate(format_name: str) -> Any:
    """`rotate(x, at, half, cos, sin, place, out, to)`: a head of `2 * half` numbers, by row `place` of the tables."""
    load, store, _ = _FORMATS[format_name]
    rotate16 = lanes.make_rotate(format_name)

    @numba.njit(**_OPTIONS, inline="always")
    def rotate(x: Any, at: Any, half: Any, cos: Any, sin: Any, place: Any, out: Any, to: Any) -> None:
        for k in range(_U(0), half - half % _LANES, _LANES):
            rotate16(x, at + k, half, cos, sin, place * half + k, out, to + k)
        for k in range(half - half % _LANES, half):
            first, second = load(x[at + k]), load(x[at + half + k])
            c, s = cos[place * half + k], sin[place * half + k]
            out[to + k] = store(first * c - second * s)
            out[to + half + k] = store(second * c + first * s)

    return rotate


def make_put_queries(format_name: str) -> Any:
    """`put_queries(heads, width, positions, cos, sin, half, out, kv_heads, rows, group, first)`.

    See `elementwise.Elementwise`; `heads` has rows of `width`, `out` is kv_heads x rows x group, `half` of a head's
    width.
    """
    item, rotate = _FORMATS[format_name][2], _make_rotate(format_name)
    table, n = types.float32[::1], types.uint64
    signature = types.void(item[::1], n, types.int64[::1], table, table, n, item[::1], n, n, n, n)

    @numba.njit(signature, **_OPTIONS)
    def put_queries(
        heads: Any, width: Any, positions: Any, cos: Any, sin: Any, half: Any,
        out: Any, kv_heads: Any, rows: Any, group: Any, first: Any,
    ) -> None:  # fmt: skip
        for row in range(_U(positions.size)):
            place = _U(positions[row])
            for head in range(kv_heads):
                for member in range(group):
                    at = row * width + (head * group + member) * _U(2) * half
                    to = ((head * rows + first + row) * group + member) * _U(2) * half
                    rotate(heads, at, half, cos, sin, place, out, to)

    return put_queries


def make_put_keys_and_values(format_name: str) -> Any:
    """`put_keys_and_values(heads, width, positions, cos, sin, half, out, kv_heads, first)`: as `make_put_queries`."""
    item, rotate = _FORMATS[format_name][2], _make_rotate(format_name)
    table, n = types.float32[::1], types.uint64
    signature = types.void(item[::1], n, types.int64[::1], table, table, n, item[::1], n, n)

    @numba.njit(signature, **_OPTIONS)
    def put_keys_and_values(
        heads: Any, width: Any, positions: Any, cos: Any, sin: Any, half: Any, out: Any, kv_heads: Any, first: Any
    ) -> None:
        part = kv_heads * _U(2) * half
        for row in range(_U(positions.size)):
            at, to = (row + _U(1)) * width - _U(2) * part, (first + row) * _U(2) * part
            place = _U(positions[row])
            for head in range(kv_heads):
                rotate(heads, at + head * _U(2) * half, half, cos, sin, place, out, to + head * _U(2) * half)
            for k in range(part):
                out[to + part + k] = heads[at + part + k]

    return put_keys_and_values
