"""The weight files of base and adapter together, a few rows at a time: neither model is ever whole in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from acemath_registry.adapters.fitting import Change
from acemath_registry.durable import CHUNK_BYTES, open_regular
from acemath_registry.errors import InvalidRequest, RejectReason, VerificationError, storage_errors
from acemath_registry.finite import finite
from acemath_registry.manifest import FileEntry
from acemath_registry.tensors import Tensor, read_header

_BLOCK_NUMBERS: Final = 1 << 16
"""Numbers that are merged at once: two blocks of float64 stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What is merged with what.

    Attributes:
        base: directory of the base version.
        files: the base's weight files, as its manifest lists them.
        adapter: the adapter's safetensors file.
        changes: name of each changed weight → its matrices.
        scaling: see `LoraSettings`.
    """

    base: Path
    files: Collection[FileEntry]
    adapter: Path
    changes: Mapping[str, Change]
    scaling: float

    def pieces(self, entry: FileEntry) -> Iterator[bytes]:
        """The bytes of the merged file in the place of this one of the base, in order; header and sizes are the base's.

        Raises:
            InvalidRequest: numpy is missing.
            VerificationError: BASE_DIFFERS when the base's file is not the published one (told at its end);
                NOT_FINITE; TRUNCATED, HEADER_MALFORMED or TENSOR_OVERLAP.
            StorageError: a file can not be read.
        """
        path, digest = self.base / entry.path, hashlib.sha256()
        tensors = read_header(path)
        with storage_errors(f"merging {path.name}"), os.fdopen(open_regular(path), "rb") as file:
            read = partial(_read, file, entry.path, digest)
            yield read(_data_begin(file, tensors))
            for tensor in tensors:
                self._require_same(tensor, entry.path)
                for piece in self._tensor(tensor, read):
                    _require_finite(tensor, piece, entry.path)
                    yield piece
        if digest.hexdigest() != entry.sha256:
            raise VerificationError(
                RejectReason.BASE_DIFFERS,
                f"of the base has sha256 {digest.hexdigest()[:12]}…, its manifest says {entry.sha256[:12]}…; "
                "publish the base again",
                file=entry.path,
            )

    def _tensor(self, tensor: Tensor, read: Callable[[int], bytes]) -> Iterator[bytes]:
        change = self.changes.get(tensor.name)
        if change is not None:
            yield from self._changed(change, read)
            return
        for at in range(tensor.begin, tensor.end, CHUNK_BYTES):  # a chunk is a whole number of numbers
            yield read(min(CHUNK_BYTES, tensor.end - at))

    def _require_same(self, tensor: Tensor, file: str) -> None:
        change = self.changes.get(tensor.name)
        if change is not None and change.weight != tensor:
            raise VerificationError(RejectReason.BASE_DIFFERS, "was replaced while it was read; try again", file=file)

    def _changed(self, change: Change, read: Callable[[int], bytes]) -> Iterator[bytes]:
        arithmetic, dtype = _arithmetic(), change.weight.dtype
        up, down = self._matrix(change.up, arithmetic), self._matrix(change.down, arithmetic)
        rows, columns = change.weight.shape
        row_bytes, block = (change.weight.end - change.weight.begin) // rows, max(1, _BLOCK_NUMBERS // columns)
        for first in range(0, rows, block):
            some = up[first : first + block]
            weights = arithmetic.numbers(dtype, read(row_bytes * len(some)), columns)
            yield arithmetic.rounded(dtype, arithmetic.changed(weights, some, down, self.scaling))

    def _matrix(self, tensor: Tensor, arithmetic: Any) -> Any:
        with os.fdopen(open_regular(self.adapter), "rb") as file:
            file.seek(_data_begin(file, read_header(self.adapter)) + tensor.begin)
            data = _read(file, self.adapter.name, hashlib.sha256(), tensor.end - tensor.begin)
        return arithmetic.numbers(tensor.dtype, data, tensor.shape[1])


def _arithmetic() -> Any:
    try:
        from acemath_registry.adapters import arithmetic  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InvalidRequest("adapters need numpy; install acemath-registry[adapters]", param="adapter_of") from error
    return arithmetic


def _data_begin(file: IO[bytes], tensors: list[Tensor]) -> int:
    return os.fstat(file.fileno()).st_size - tensors[-1].end


def _read(file: IO[bytes], name: str, digest: hashlib._Hash, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise VerificationError(RejectReason.TRUNCATED, "became shorter while it was read; copy it again", file=name)
    digest.update(data)
    return data


def _require_finite(tensor: Tensor, data: bytes, file: str) -> None:
    if not finite(tensor.dtype, data):
        said = f"tensor {tensor.name} holds NaN or infinity after merging; export an earlier step"
        raise VerificationError(RejectReason.NOT_FINITE, said, file=file)
