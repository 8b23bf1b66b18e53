import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry.tiny import METADATA, SMALL, safetensors_bytes

from acemath_registry import Registry, RejectReason, VerificationError
from acemath_registry import publish as publishing
from acemath_registry.finite import finite

INFINITE_BITS = {"BF16": (2, 0x7F80), "F16": (2, 0x7C00), "F32": (4, 0x7F800000), "F64": (8, 0x7FF << 52)}


@given(st.lists(st.floats(width=32), max_size=9), st.sampled_from(["F32", "F64", "BF16"]))
def test_it_agrees_with_arithmetic(values: list[float], dtype: str) -> None:
    if dtype == "BF16":  # the upper half of a float32; a NaN may lose its only set bit there and become infinite
        data = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        data = struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'd'}", *values)
    assert finite(dtype, data) is all(map(math.isfinite, values))


@given(st.lists(st.integers(0, 0xFFFF), max_size=9))
def test_half_precision_agrees_with_arithmetic(bits: list[int]) -> None:
    data = struct.pack(f"<{len(bits)}H", *bits)
    assert finite("F16", data) is all(map(math.isfinite, struct.unpack(f"<{len(bits)}e", data)))


@pytest.mark.parametrize("dtype", INFINITE_BITS)
def test_the_largest_numbers_are_numbers(dtype: str) -> None:
    size, bits = INFINITE_BITS[dtype]
    for sign in (0, 1 << (8 * size - 1)):
        assert finite(dtype, ((bits - 1) | sign).to_bytes(size, "little") * 3)
        for wrong in (bits, bits + 1, (1 << (8 * size - 1)) - 1):
            assert not finite(dtype, bytes(size) + (wrong | sign).to_bytes(size, "little"))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bits(dtype: str) -> None:
    assert finite(dtype, b"\x00\x7b\xfb\x3c")
    assert not finite(dtype, b"\x00\xff")


def test_whole_numbers_are_always_finite() -> None:
    assert finite("I8", b"\xff" * 8) and finite("U8", b"\x7f") and finite("BF16", b"")


@pytest.mark.parametrize("value", [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f"])
def test_a_version_that_is_not_finite_is_neither_published_nor_verified(
    registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    tensors = SMALL | {"model.norm.weight": ("BF16", [2], b"\x80\x3f" + value)}
    source = make_checkpoint(tensors=tensors)
    assert (source / "model.safetensors").read_bytes() == safetensors_bytes(tensors)

    def reason(action: Callable[[], object]) -> tuple[RejectReason, str | None]:
        with pytest.raises(VerificationError, match=r"model\.norm\.weight") as caught:
            action()
        return caught.value.reason, caught.value.file

    expected = (RejectReason.NOT_FINITE, "model.safetensors")
    assert reason(lambda: registry.publish(source, name="pol", kind="policy", metadata=METADATA)) == expected
    assert registry.versions() == []
    monkeypatch.setattr(publishing, "require_finite", lambda *given: None)  # an older publisher let it pass
    ref = registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    assert reason(lambda: registry.verify(ref)) == expected
