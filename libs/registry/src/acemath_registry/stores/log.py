"""A log on an object store, which has no append: a folder of numbered pieces, the last of which is rewritten by
compare-and-set until it is full. Lines of two writers both stay: who loses reads again and adds his to the other's.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from acemath_registry.documents import MAX_DOCUMENT_BYTES
from acemath_registry.errors import StorageError
from acemath_registry.stores.s3 import ABSENT, S3Bucket

PIECE_BYTES: Final = 256 * 1024
_TRIES: Final = 20


def append(bucket: S3Bucket, log: PurePath, line: bytes, piece_bytes: int = PIECE_BYTES) -> None:
    """Add a line, which ends in a newline.

    Raises:
        StorageError: the store refused, or others wrote in between so many times.
    """
    pieces = _pieces(bucket, log)
    number = int(pieces[-1]) if pieces else 1
    for _ in range(_TRIES):
        data, tag = _read(bucket, log, number)
        if line in data.splitlines(keepends=True):
            return  # it was written, and the answer was lost
        if data and len(data) + len(line) > piece_bytes:
            number += 1
        elif bucket.put(_key(log, number), data + line, only_if=tag):
            return
    raise StorageError(f"{log.name} was written by others {_TRIES} times meanwhile; try again")


def tail(bucket: S3Bucket, log: PurePath, limit_bytes: int) -> list[bytes]:
    """The last lines, of about `limit_bytes` at most, the oldest first."""
    read, lines = 0, list[bytes]()
    for piece in reversed(_pieces(bucket, log)):
        data, _ = _read(bucket, log, int(piece))
        lines[:0] = [line for line in data.split(b"\n") if line.strip()]
        read += len(data)
        if read >= limit_bytes:
            break
    return lines


def _pieces(bucket: S3Bucket, log: PurePath) -> list[str]:
    return sorted(name for name in bucket.children(f"{log}/")[0] if name.isdecimal())


def _read(bucket: S3Bucket, log: PurePath, number: int) -> tuple[bytes, str]:
    try:
        return bucket.get(_key(log, number), MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        return b"", ABSENT


def _key(log: PurePath, number: int) -> str:
    return f"{log}/{number:08d}"
