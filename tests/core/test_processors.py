"""In which format a CPU computes, by what the kernel says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from acemath_core.processors import computes_in_bfloat16

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 avx2 {more}\nbugs\t\t: bf16_is_no_bug\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {more}\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format(more="sha_ni"), False),
        (X86.format(more="avx512f avx512bw"), False),
        (X86.format(more="avx512f avx512_bf16"), True),
        (X86.format(more="amx_tile amx_bf16"), True),
        (ARM.format(more="sve"), False),
        (ARM.format(more="sve bf16"), True),
        ("processor\t: 0\n", True),
        ("", True),
    ],
)
def test_what_the_kernel_says_decides(text: str, expected: bool, tmp_path: Path) -> None:
    (path := tmp_path / "cpuinfo").write_text(text)
    assert computes_in_bfloat16(path) is expected


def test_where_nothing_can_be_read_it_is_the_stored_format(tmp_path: Path) -> None:
    assert computes_in_bfloat16(tmp_path / "none")


def test_it_is_what_torch_says_of_this_machine() -> None:
    torch = pytest.importorskip("torch")
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("torch tells this of x86 only")
    expected = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert computes_in_bfloat16() is bool(expected)
