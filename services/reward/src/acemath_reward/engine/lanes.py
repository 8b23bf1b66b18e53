"""Sixteen numbers at once: the vector steps of the loops in `kernels`.

The compiler's own vectorisation first asks, for every short row, whether arrays overlap; said outright, the steps take
a third of the time. Where the CPU's vectors are shorter the compiler splits them.

An array is flat here. bfloat16 has no type in numpy and is held as the 16 bits that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_HALF_BITS = 16
_ROUNDING = 0x7FFF


def _all(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * LANES)


def _load_bfloat16(builder: Any, pointer: Any) -> Any:
    halves = builder.load(builder.bitcast(pointer, _HALVES.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), _all(_HALF_BITS)), _FLOATS)


def _store_bfloat16(builder: Any, numbers: Any, pointer: Any) -> None:
    """To nearest, ties to even, as torch rounds.

    What is not a number stays so without a test: its lower half is zero here, as it comes from a bfloat16 or is the
    processor's own, and rounding cannot carry into its exponent.
    """
    bits = builder.bitcast(numbers, _WORDS)
    odd = builder.and_(builder.lshr(bits, _all(_HALF_BITS)), _all(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _all(_ROUNDING)), odd), _all(_HALF_BITS))
    builder.store(builder.trunc(rounded, _HALVES), builder.bitcast(pointer, _HALVES.as_pointer()), align=2)


def _load_float32(builder: Any, pointer: Any) -> Any:
    return builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


def _store_float32(builder: Any, numbers: Any, pointer: Any) -> None:
    builder.store(numbers, builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


FORMATS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "bfloat16": (_load_bfloat16, _store_bfloat16),
    "float32": (_load_float32, _store_float32),
}


def make_scale(format_name: str) -> Any:
    """`scale(x, at, factor, weight, k, out, to)`: `out[to:] = x[at:] * factor * weight[k:]`, rounded once."""
    load, store = FORMATS[format_name]

    @intrinsic
    def scale(context: Any, x: Any, at: Any, factor: Any, weight: Any, k: Any, out: Any, to: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _places(context, builder, signature, values)
            number = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), values[2], ir.IntType(32)(0))
            factors = builder.shuffle_vector(number, number, ir.Constant(_WORDS, [0] * LANES))
            scaled = builder.fmul(load(builder, place(0, 1)), factors)
            store(builder, builder.fmul(scaled, load(builder, place(3, 4))), place(5, 6))
            return context.get_dummy_value()

        return types.void(x, at, factor, weight, k, out, to), make

    return scale


def make_rotate(format_name: str) -> Any:
    """`rotate(x, at, half, cos, sin, k, out, to)`: 16 pairs `(x[at:], x[at + half:])` turned, into the same of `out`.

    `cos` and `sin` are float32, from `k` on; each result is rounded once.
    """
    load, store = FORMATS[format_name]

    @intrinsic
    def rotate(context: Any, x: Any, at: Any, half: Any, cos: Any, sin: Any, k: Any, out: Any, to: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _places(context, builder, signature, values)
            first, second = load(builder, place(0, 1)), load(builder, place(0, 1, 2))
            c, s = _load_float32(builder, place(3, 5)), _load_float32(builder, place(4, 5))
            store(builder, builder.fsub(builder.fmul(first, c), builder.fmul(second, s)), place(6, 7))
            store(builder, builder.fadd(builder.fmul(second, c), builder.fmul(first, s)), place(6, 7, 2))
            return context.get_dummy_value()

        return types.void(x, at, half, cos, sin, k, out, to), make

    return rotate


def _places(context: Any, builder: Any, signature: Any, values: Any) -> Callable[..., Any]:
    """`place(a, i, j, ...)`: where element `i + j + ...` of array `a` lies; all are numbers of arguments."""

    def place(array: int, *indices: int) -> Any:
        data = context.make_array(signature.args[array])(context, builder, values[array]).data
        index = values[indices[0]]
        for other in indices[1:]:
            index = builder.add(index, values[other])
        return builder.gep(data, [index])

    return place
