"""What the processor of this machine computes in, without importing a library that computes."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("flags", "Features")  # of x86 and of Arm
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def computes_in_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the CPU multiplies bfloat16 numbers (AVX512-BF16, AMX, Arm's BF16), not only stores them.

    Elsewhere every product takes its numbers apart first: a processor with AVX2 only multiplies in float32 seven to
    eleven times as fast. Where nothing can be read (no Linux), the answer is yes: what checkpoints are stored in.

    Args:
        cpuinfo: what the kernel says of the processors, as in `/proc/cpuinfo`.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    named = (line.partition(":") for line in lines)
    told = [set(values.split()) for name, _, values in named if name.strip() in _NAMES]
    return not told or bool(told[0] & _BFLOAT16)


def cpu_dtype() -> str:
    """The format in which a CPU of this machine computes a checkpoint of bfloat16 fastest."""
    return "bfloat16" if computes_in_bfloat16() else "float32"
