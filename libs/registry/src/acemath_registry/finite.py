"""Are the weights numbers? NaN and infinity, found in the bytes with the standard library.

A value is not finite when all bits of its exponent are one. The last byte of a number is looked at first; where the
exponent reaches into the byte before it, the last byte alone is also that of numbers near the largest of the format.
No model holds many of those, so that the second look is next to never taken.

The publisher looks, and whoever asks for a version to be verified. A replica does not: its copy has the published
digests, and the loaded model's canary has to be finite.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acemath_registry.durable import CHUNK_BYTES, open_regular
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.manifest import WEIGHTS_SUFFIX
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.tensors import Tensor, read_header


@dataclass(frozen=True, slots=True)
class _Format:
    """Little-endian numbers.

    Attributes:
        size: bytes of one.
        suspects: last bytes that one that is not finite may have.
        below: from which value on the byte before the last makes sure; 0 where the last alone does.
    """

    size: int
    suspects: bytes
    below: int = 0


_ALL_ONES = bytes((0x7F, 0xFF))  # the first bit is the sign
_FIVE_ONES = bytes((*range(0x7C, 0x80), *range(0xFC, 0x100)))
_FORMATS: Final[Mapping[str, _Format]] = {
    "BF16": _Format(2, _ALL_ONES, 0x80),
    "F16": _Format(2, _FIVE_ONES),
    "F32": _Format(4, _ALL_ONES, 0x80),
    "F64": _Format(8, _ALL_ONES, 0xF0),
    "F8_E5M2": _Format(1, _FIVE_ONES),
    "F8_E4M3": _Format(1, _ALL_ONES),
}
"""The floating-point formats that weights are stored in; integers are always numbers."""


def require_finite(directory: Path, names: Collection[str], progress: Progress = no_progress) -> None:
    """Refuse weights that hold NaN or infinity; reads every byte of them.

    Args:
        directory: of the version, whose headers have been checked.
        names: of the files in it.
        progress: hears how far it is, as `checking numbers`.

    Raises:
        VerificationError: NOT_FINITE, naming file and tensor.
        StorageError: a file can not be read.
    """
    weights = [name for name in sorted(names) if name.endswith(WEIGHTS_SUFFIX)]
    tensors = {name: read_header(directory / name) for name in weights}
    advance = counter(progress, "checking numbers", sum(found[-1].end for found in tensors.values() if found))
    for name in weights:
        for tensor, values in _read(directory / name, tensors[name]):
            if not finite(tensor.dtype, values):
                raise VerificationError(
                    RejectReason.NOT_FINITE,
                    f"tensor {tensor.name} holds NaN or infinity; its run diverged: export an earlier step",
                    file=name,
                )
            advance(len(values))


def finite(dtype: str, values: bytes) -> bool:
    """Whether all of these whole little-endian numbers are finite; always, for a format without NaN.

    Args:
        dtype: as safetensors headers name it.
        values: the numbers' bytes.
    """
    form = _FORMATS.get(dtype)
    if form is None:
        return True
    last = values[form.size - 1 :: form.size]
    return not any(
        not form.below or values[at * form.size + form.size - 2] >= form.below
        for suspect in form.suspects
        for at in _places(last, suspect)
    )


def _places(data: bytes, value: int) -> Iterator[int]:
    at = data.find(value)
    while at >= 0:
        yield at
        at = data.find(value, at + 1)


def _read(path: Path, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, bytes]]:
    """The file's tensors with their bytes, a chunk at a time."""
    with storage_errors(f"reading {path.name}"), os.fdopen(open_regular(path), "rb") as file:
        begin = os.fstat(file.fileno()).st_size - tensors[-1].end
        for tensor in tensors:
            for at in range(tensor.begin, tensor.end, CHUNK_BYTES):  # a chunk is a whole number of numbers
                file.seek(begin + at)
                yield tensor, file.read(min(CHUNK_BYTES, tensor.end - at))
