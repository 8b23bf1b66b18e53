"""What safetensors headers say, read with the standard library; the tensors' bytes are never loaded.

Format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data,
without holes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from acemath_registry.documents import decode
from acemath_registry.durable import open_regular
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.files import INDEX_NAME, SHARD_PATTERN, SINGLE_WEIGHTS
from acemath_registry.manifest import TensorDigests

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors library."""

_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_TORCH_NAMES: Final[Mapping[str, str]] = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its header describes it; `begin` and `end` are offsets into the data of the file named `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: str = field(default="", compare=False)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_tensors(directory: Path, names: Iterable[str]) -> list[Tensor]:
    """All tensors of a version, sorted by name, from the headers of its weight files.

    Args:
        directory: of the version.
        names: of the files in it.

    Raises:
        VerificationError: a missing or surplus shard, an index that does not fit, a header that does not fit its file.
        StorageError: a file can not be read.
    """
    present = set(names)
    shards = _weight_files(present)
    homes: dict[str, str] = {}
    tensors: list[Tensor] = []
    for shard in shards:
        for tensor in read_header(directory / shard):
            if tensor.name in homes:
                raise _reject(
                    RejectReason.INDEX_MISMATCH,
                    shard,
                    f"tensor {tensor.name} is in {homes[tensor.name]} too; export again",
                )
            homes[tensor.name] = shard
            tensors.append(tensor)
    if INDEX_NAME in present:
        _check_index(directory / INDEX_NAME, homes)
    return sorted(tensors, key=lambda tensor: tensor.name)


def read_header(path: Path) -> list[Tensor]:
    """The tensors that one safetensors file holds, by offset; header and size must agree to the byte.

    Raises:
        VerificationError: TRUNCATED, HEADER_MALFORMED or TENSOR_OVERLAP.
        StorageError: the file can not be read.
    """
    with storage_errors(f"reading {path.name}"), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or (length <= MAX_HEADER_BYTES and 8 + length > size):
            raise _reject(
                RejectReason.TRUNCATED, path.name, f"has {size} bytes, fewer than its header needs; copy it again"
            )
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _reject(RejectReason.HEADER_MALFORMED, path.name, f"claims a header of {length} bytes; export again")
        header = decode(file.read(length), file=path.name, reason=RejectReason.HEADER_MALFORMED)
    tensors = sorted(_tensors(path.name, header), key=lambda tensor: (tensor.begin, tensor.end))
    _check_offsets(path.name, tensors, size - 8 - length)
    return tensors


def digest_tensors(tensors: list[Tensor]) -> TensorDigests:
    """The digests over tensors sorted by name."""
    return TensorDigests(
        count=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        names_sha256=_digest(tensor.name for tensor in tensors),
        shapes_sha256=_digest(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors),
        dtypes_sha256=_digest(f"{tensor.name} {tensor.dtype}" for tensor in tensors),
    )


def dominant_dtype(tensors: list[Tensor]) -> str:
    """The torch name of the dtype that most elements have (a bf16 model may keep its head in float32)."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.elements
    winner = max(sorted(totals), key=lambda dtype: totals[dtype])
    return _TORCH_NAMES.get(winner, winner.lower())


def _weight_files(present: set[str]) -> list[str]:
    shards = sorted(name for name in present if SHARD_PATTERN.fullmatch(name))
    if SINGLE_WEIGHTS in present:
        surplus = [*shards, *({INDEX_NAME} & present)]
        if surplus:
            raise _reject(
                RejectReason.INDEX_MISMATCH, surplus[0], f"stands beside {SINGLE_WEIGHTS}; keep one form of the weights"
            )
        return [SINGLE_WEIGHTS]
    if not shards:
        raise _reject(RejectReason.FILE_MISSING, SINGLE_WEIGHTS, "there are no weights; export them as safetensors")
    total = int(shards[0][-17:-12])
    wanted = (
        [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)] if total <= 99_999 else []
    )
    missing = sorted(set(wanted) - present)
    if missing:
        raise _reject(
            RejectReason.FILE_MISSING, missing[0], f"shard is missing ({len(shards)} of {total} are there); copy it"
        )
    if shards != wanted:
        raise _reject(RejectReason.INDEX_MISMATCH, shards[-1], f"does not belong to the {total} shards; remove it")
    if INDEX_NAME not in present:
        raise _reject(RejectReason.FILE_MISSING, INDEX_NAME, "shards need their index; export again")
    return shards


def _check_index(path: Path, homes: dict[str, str]) -> None:
    from_index = read_json(path, RejectReason.INDEX_MISMATCH).get("weight_map")
    if not isinstance(from_index, dict) or not all(isinstance(shard, str) for shard in from_index.values()):
        raise _reject(RejectReason.INDEX_MISMATCH, path.name, "has no weight_map; export again")
    outside = sorted(shard for shard in from_index.values() if "/" in shard or "\\" in shard or shard == "..")
    if outside:
        raise _reject(
            RejectReason.PATH_TRAVERSAL,
            path.name,
            f"points outside the directory, to {outside[0]!r}; do not use this version",
        )
    different = sorted({name for name, _ in from_index.items() ^ homes.items()})
    if different:
        raise _reject(
            RejectReason.INDEX_MISMATCH,
            path.name,
            f"disagrees with the shards about {different[0]!r} (and {len(different) - 1} more)",
        )


def read_json(path: Path, reason: RejectReason) -> dict[str, Any]:
    """The JSON object in a file of a version, of at most 100 MB.

    Raises:
        VerificationError: with `reason`, when it is not one.
        StorageError: it can not be read.
    """
    with storage_errors(f"reading {path.name}"), os.fdopen(open_regular(path), "rb") as file:
        data = file.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        raise _reject(reason, path.name, f"is larger than {MAX_HEADER_BYTES} bytes; no such file should be")
    return decode(data, file=path.name, reason=reason)


def _tensors(file: str, header: dict[str, Any]) -> list[Tensor]:
    header.pop("__metadata__", None)
    if not header:
        raise _reject(RejectReason.HEADER_MALFORMED, file, "holds no tensor; export again")
    return [_tensor(file, name, entry) for name, entry in header.items()]


def _tensor(file: str, name: str, entry: Any) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("not natural numbers")
        bits = _BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise _reject(
            RejectReason.HEADER_MALFORMED, file, f"tensor {name!r} has no usable dtype, shape and offsets; export again"
        ) from error
    if bits % 8 or end - begin != bits // 8:
        raise _reject(
            RejectReason.HEADER_MALFORMED,
            file,
            f"tensor {name!r}: {end - begin} bytes do not fit {dtype} {list(shape)}; export again",
        )
    return Tensor(name, dtype, shape, begin, end, file)


def _check_offsets(file: str, tensors: list[Tensor], data_bytes: int) -> None:
    if tensors[0].begin != 0 or any(a.end != b.begin for a, b in itertools.pairwise(tensors)):
        raise _reject(RejectReason.TENSOR_OVERLAP, file, "tensors overlap or leave holes; export again")
    if tensors[-1].end > data_bytes:
        raise _reject(
            RejectReason.TRUNCATED,
            file,
            f"has {data_bytes} bytes of data where its header names {tensors[-1].end}; copy it again",
        )
    if tensors[-1].end < data_bytes:
        raise _reject(
            RejectReason.HEADER_MALFORMED,
            file,
            f"has {data_bytes - tensors[-1].end} bytes after its last tensor; export again",
        )


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def _reject(reason: RejectReason, file: str, detail: str) -> VerificationError:
    return VerificationError(reason, detail, file=file)
