"""What can go wrong with the registry; each message says what, with what, and what to do.

ServiceError (acemath_core)
  + NotFound                 no such version, release, channel or status            404
  + Conflict                 a compare-and-set lost, or a different version is there  409
  + Unavailable
      + LockTimeout          another process held a lock past the deadline          503
      + StorageError         the file system said no                                503
          + DiskFull         not enough space; nothing was left behind              503
  + InvalidRequest           a name that can not be a name                          400
  + VerificationError        a checkpoint or document that must not be used         409
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from acemath_core.errors import Conflict, ErrorCode, InvalidRequest, NotFound, ServiceError, Unavailable

__all__ = [
    "Conflict",
    "DiskFull",
    "InvalidRequest",
    "LockTimeout",
    "NotFound",
    "RejectReason",
    "StorageError",
    "VerificationError",
    "storage_errors",
]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RejectReason(StrEnum):
    """Why a version must not be loaded; stable, so that status lines and metrics may carry it."""

    MANIFEST_MISSING = "manifest_missing"
    MANIFEST_MALFORMED = "manifest_malformed"
    MANIFEST_EDITED = "manifest_edited"
    SCHEMA_UNSUPPORTED = "schema_unsupported"
    PATH_TRAVERSAL = "path_traversal"
    VERSION_MISMATCH = "version_mismatch"
    MISPLACED = "misplaced"
    FILE_MISSING = "file_missing"
    FILE_EXTRA = "file_extra"
    NAME_NOT_ALLOWED = "name_not_allowed"
    HIDDEN_FILE = "hidden_file"
    SYMLINK = "symlink"
    NOT_A_FILE = "not_a_file"
    PICKLE = "pickle"
    PYTHON_CODE = "python_code"
    AUTO_MAP = "auto_map"
    CONFIG_MALFORMED = "config_malformed"
    ARCHITECTURE = "architecture"
    WRONG_KIND = "wrong_kind"
    CHAT_TEMPLATE = "chat_template"
    TRUNCATED = "truncated"
    HEADER_MALFORMED = "header_malformed"
    TENSOR_OVERLAP = "tensor_overlap"
    INDEX_MISMATCH = "index_mismatch"
    TENSOR_NAMES = "tensor_names"
    TENSOR_SHAPES = "tensor_shapes"
    TENSOR_DTYPES = "tensor_dtypes"
    NOT_FINITE = "not_finite"
    SIZE_MISMATCH = "size_mismatch"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    METADATA_MISMATCH = "metadata_mismatch"
    RELEASE_EDITED = "release_edited"
    CHANNEL_MALFORMED = "channel_malformed"
    TOMBSTONE_MALFORMED = "tombstone_malformed"
    GATES_MALFORMED = "gates_malformed"
    BANDS_MALFORMED = "bands_malformed"
    EVALUATION_EDITED = "evaluation_edited"
    ADAPTER_MALFORMED = "adapter_malformed"
    ADAPTER_UNSUPPORTED = "adapter_unsupported"
    ADAPTER_MISFIT = "adapter_misfit"
    BASE_MISSING = "base_missing"
    BASE_DIFFERS = "base_differs"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_MALFORMED = "signature_malformed"
    SIGNATURE_UNTRUSTED = "signature_untrusted"
    SIGNATURE_WRONG = "signature_wrong"


class VerificationError(ServiceError):
    """A checkpoint or a document that must not be used.

    Attributes:
        reason: the machine-readable reason.
        file: the file at fault, relative to the directory that was checked; None when it is the whole.
        detail: what was found, and what to do.
    """

    default_code = ErrorCode.CONFLICT

    def __init__(self, reason: RejectReason, detail: str, *, file: str | None = None) -> None:
        where = f"{file}: " if file else ""
        super().__init__(f"{where}{detail} [{reason.value}]", should_retry=False)
        self.reason = reason
        self.file = file
        self.detail = detail


class LockTimeout(Unavailable):
    """Another process held the lock for longer than we wait."""

    default_code = ErrorCode.NOT_READY


class StorageError(Unavailable):
    """The file system refused; the cause is the `OSError`."""

    default_code = ErrorCode.NOT_READY


class DiskFull(StorageError):
    """Not enough space; what had been written was removed again."""


@contextmanager
def storage_errors(doing: str, source: Path | None = None, *, publishing: bool = False) -> Iterator[None]:
    """Translate an `OSError` into a `StorageError` that says what we were doing, and with which file.

    Args:
        doing: what fails when it fails.
        source: what is being published: it is said whether a file is there or in the registry.
        publishing: only who publishes is told the path of a file; other errors may go to callers of a service.

    Raises:
        DiskFull: no space or quota left.
        StorageError: any other refusal.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull(
                f"no space left while {doing}; free some, then try again; nothing was left behind"
            ) from error
        reason = error.strerror or type(error).__name__
        where = _place(error.filename, source) if publishing or source is not None else ""
        raise StorageError(f"{doing} failed: {reason}{where}; check the mount and its permissions") from error


def _place(name: object, source: Path | None) -> str:
    """The file at fault, as an error names it, for the end of a sentence; empty where it names none."""
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    path = Path(os.fsdecode(name))
    return f": {path} (in the {'source' if source is not None and path.is_relative_to(source) else 'registry'})"
