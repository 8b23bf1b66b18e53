"""Which files a version may hold, and their digests.

The list is of what is allowed: a name nobody thought of is refused, with the reason that fits it best.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from acemath_registry.durable import CHUNK_BYTES, open_regular
from acemath_registry.errors import RejectReason, VerificationError, storage_errors
from acemath_registry.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry

SHARD_PATTERN: Final = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
SINGLE_WEIGHTS: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
CONFIG_NAME: Final = "config.json"
TOKENIZER_NAME: Final = "tokenizer.json"
TOKENIZER_CONFIG_NAME: Final = "tokenizer_config.json"
TEMPLATE_NAME: Final = "chat_template.jinja"

ALLOWED_NAMES: Final = frozenset(
    {
        CONFIG_NAME,
        "generation_config.json",
        TOKENIZER_NAME,
        TOKENIZER_CONFIG_NAME,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        TEMPLATE_NAME,
        SINGLE_WEIGHTS,
        INDEX_NAME,
        "README.md",
        "LICENSE",
        "NOTICE",
    }
)
REQUIRED_NAMES: Final = (CONFIG_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME)
"""Without them no service loads a version; the chat template may lie in the last one."""
OWN_NAMES: Final = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
"""Written by the registry beside the files; outside the version's digest."""

_PICKLE_SUFFIXES: Final = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5"}
)
_CODE_SUFFIXES: Final = frozenset({".py", ".pyc", ".pyo", ".pyd", ".so"})


def reject_reason(name: str) -> RejectReason | None:
    """Why a file of this name may not be in a version; None when it may."""
    if name in ALLOWED_NAMES or SHARD_PATTERN.fullmatch(name):
        return None
    if "/" in name or "\\" in name or "\0" in name or name in {"", ".", ".."}:
        return RejectReason.PATH_TRAVERSAL
    if name.startswith("."):
        return RejectReason.HIDDEN_FILE
    suffixes = {suffix.lower() for suffix in Path(name).suffixes}
    if suffixes & _PICKLE_SUFFIXES:
        return RejectReason.PICKLE
    if suffixes & _CODE_SUFFIXES:
        return RejectReason.PYTHON_CODE
    return RejectReason.NAME_NOT_ALLOWED


def list_files(directory: Path, *, ignore: frozenset[str] = frozenset()) -> dict[str, int]:
    """Name → size in bytes of every file in `directory`, sorted by name; `ignore` names are left out unread.

    Raises:
        VerificationError: a symlink, a sub-folder or device, or a name that is not allowed.
        StorageError: the directory can not be read.
    """
    sizes: dict[str, int] = {}
    with storage_errors(f"listing {directory.name}"), os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            _check_entry(entry, own=entry.name in ignore)
            if entry.name not in ignore:
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def sha256_file(path: Path, on_bytes: Callable[[int], None]) -> str:
    """The sha256 of a plain file, read in chunks; `on_bytes` hears of each.

    Raises:
        OSError: it can not be read, or is a symlink or a device.
    """
    digest = hashlib.sha256()
    descriptor = open_regular(path)
    try:
        while chunk := os.read(descriptor, CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def hash_files(directory: Path, sizes: Mapping[str, int], on_bytes: Callable[[int], None]) -> tuple[FileEntry, ...]:
    """An entry with size and sha256 for each of the files that `list_files` found, in the same order.

    Raises:
        StorageError: a file can not be read.
    """
    with storage_errors(f"hashing {directory.name}"):
        return tuple(
            FileEntry(path=name, size=size, sha256=sha256_file(directory / name, on_bytes))
            for name, size in sizes.items()
        )


def _check_entry(entry: os.DirEntry[str], *, own: bool) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise VerificationError(RejectReason.SYMLINK, "is a symlink; put the file itself there", file=entry.name)
    if not stat.S_ISREG(mode):
        raise VerificationError(
            RejectReason.NOT_A_FILE, "is not a plain file; a version holds files only, no folders", file=entry.name
        )
    reason = None if own else reject_reason(entry.name)
    if reason is not None:
        raise VerificationError(
            reason,
            "may not be in a version; remove it (allowed: safetensors, config, tokenizer, template)",
            file=entry.name,
        )
