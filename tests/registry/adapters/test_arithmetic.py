"""The merge has one right result, to the bit: that of IEEE 754's float64, number after number."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry.adapters.tiny import exact

from acemath_registry.adapters.arithmetic import changed, numbers, rounded

singles = st.floats(min_value=-1e6, max_value=1e6, width=32)
halves = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)  # every finite bfloat16


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, int, list[float], list[float], list[float], float]:
    rows, columns, rank = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    some = [draw(st.lists(singles, min_size=n, max_size=n)) for n in (rows * columns, rows * rank, rank * columns)]
    return rows, columns, rank, *some, draw(st.sampled_from([2.0, 0.1, 16 / 7, -1.5]))  # type: ignore[return-value]


@given(layers(), st.integers(1, 5))
def test_each_number_is_that_of_plain_float64_in_blocks_of_any_size(
    layer: tuple[int, int, int, list[float], list[float], list[float], float], block: int
) -> None:
    rows, columns, rank, weight, up, down, scaling = layer
    w, b, a = np.reshape(weight, (rows, columns)), np.reshape(up, (rows, rank)), np.reshape(down, (rank, columns))
    parts = [changed(w[i : i + block], b[i : i + block], a, scaling) for i in range(0, rows, block)]
    found = [float(one) for part in parts for one in part.ravel()]
    assert struct.pack(f"{len(found)}d", *found) == struct.pack(
        f"{len(found)}d", *exact(weight, up, down, columns, scaling)
    )


def value_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


@given(halves, st.floats(-1.25, 1.25), st.sampled_from([0.0, 2.0**-30, -(2.0**-30), 2.0**-52]))
def test_bfloat16_is_rounded_once_to_nearest_and_ties_to_even(bits: int, ulps: float, beside: float) -> None:
    """Numbers around half-way points, where rounding to float32 first would land on the tie."""
    low, high = sorted((value_of(bits & 0x7FFF), value_of((bits & 0x7FFF) + 1)))
    if high == float("inf"):
        return
    ulp = high - low
    for value in (low + ulp * ulps, low + ulp / 2, (low + ulp / 2) * (1 + beside)):
        (found,) = struct.unpack("<H", rounded("BF16", np.array([[value]])))
        distance = abs(Fraction(value) - Fraction(value_of(found)))
        for other in (found - 1, found + 1):
            if other & 0x7FFF in (0x7FFF, 0x7F80) or found & 0x7FFF == 0:
                continue
            further = abs(Fraction(value) - Fraction(value_of(other)))
            assert distance < further or (distance == further and found % 2 == 0)


@given(halves)
def test_what_a_format_holds_is_read_and_written_unchanged(bits: int) -> None:
    data = struct.pack("<H", bits)
    assert rounded("BF16", numbers("BF16", data, 1)) == data
    single = struct.pack("<I", bits << 16)
    assert rounded("F32", numbers("F32", single, 1)) == single


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("BF16", 1 + 2**-8, 1.0),  # a tie, to even
        ("BF16", 1 + 2**-8 + 2**-40, 1 + 2**-7),  # float32 would make it the tie
        ("BF16", 1 + 3 * 2**-8 - 2**-40, 1 + 2**-7),
        ("BF16", -(1 + 2**-8 + 2**-40), -(1 + 2**-7)),
        ("F16", 1 + 2**-11, 1.0),
        ("F16", 1 + 2**-11 + 2**-40, 1 + 2**-10),
        ("F16", -(1 + 3 * 2**-11 - 2**-40), -(1 + 2**-10)),
        ("F32", 1 + 2**-24 + 2**-50, 1 + 2**-23),
    ],
)
def test_no_second_rounding(dtype: str, value: float, expected: float) -> None:
    assert numbers(dtype, rounded(dtype, np.array([[value]])), 1).item() == expected


def test_what_is_too_large_is_not_finite() -> None:
    assert np.isinf(numbers("BF16", rounded("BF16", np.array([[3.4e38, -1e300, 3.39e38]])), 3)).tolist() == [
        [True, True, False]
    ]
