"""A journal: a JSON Lines file that a killed run can go on with, losing nothing that was written.

The first line is the run's configuration and its digest; every other line is one record with an id. A line that a
kill cut off is dropped when the file is opened again. One process at a time holds the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JournalError(Exception):
    """The file belongs to another configuration, to a running process, or is no journal."""


def config_digest(config: dict[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the configuration in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


class Journal:
    """An append-only file of records under one configuration. A context manager."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Open or create the file.

        Raises:
            JournalError: it was written under another configuration, or another process has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.config = config
        self._file = path.open("a+b")
        try:
            self._lock()
            self.records = self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record (with its `id`) and see it on disk before returning."""
        self._write(record)
        self.records[str(record["id"])] = record

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{self.path} is being written by another process") from error

    def _recover(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        if not whole:
            self._write({"config": self.config, "digest": config_digest(self.config)})
            return {}
        config, records = parse_journal(self.path, content[:whole])
        if config_digest(config) != config_digest(self.config):
            raise JournalError(
                f"{self.path} holds a run with another configuration: {_difference(config, self.config)}"
            )
        return records

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return configuration and records of a journal, which may be in writing; its last, unfinished line is left out.

    Raises:
        JournalError: the file is no journal.
    """
    content = path.read_bytes()
    config, records = parse_journal(path, content[: content.rfind(b"\n") + 1])
    return config, list(records.values())


def parse_journal(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return configuration and records (by id; a later record of the same id replaces an earlier one).

    Raises:
        JournalError: the first line is no configuration, or a line is not JSON.
    """
    try:
        documents = [json.loads(line) for line in content.splitlines()]
        config: dict[str, Any] = documents[0]["config"]
        return config, {str(record["id"]): record for record in documents[1:]}
    except (ValueError, LookupError, TypeError) as error:
        raise JournalError(f"{path} is not a journal of a run: {error}") from error


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    names = [name for name in sorted({*stored, *asked}) if stored.get(name) != asked.get(name)]
    return ", ".join(f"{name} is {stored.get(name)!r} there and {asked.get(name)!r} here" for name in names)
