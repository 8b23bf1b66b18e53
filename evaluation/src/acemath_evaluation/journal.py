"""A journal: a JSON Lines file that a killed run can go on with, losing nothing that was written.

The first line is the run's configuration and its digest. Every other line is a record with an `id`, or says what the
run was asked for (`asked`: id → cluster), or that an id failed (`failed`, `code`, `reason`): what has no record must
not vanish from what is measured. A line that a kill cut off is dropped when the file is opened again. One process at
a time holds the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JournalError(Exception):
    """The file belongs to another configuration, to a running process, or is no journal."""


def config_digest(config: dict[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the configuration in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Entries:
    """What the lines of a journal say. A later record of an id replaces an earlier one, and ends its failure."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    """Id → cluster of everything that was ever asked for; empty in journals from before this was written down."""
    failed: dict[str, str] = field(default_factory=dict)
    """Id → code of what failed and was not made good since."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in one line.

        Raises:
            LookupError, TypeError: it is no such line.
        """
        if "asked" in line:
            self.asked.update(line["asked"])
        elif "failed" in line:
            self.failed[str(line["failed"])] = str(line["code"])
        else:
            self.records[str(line["id"])] = dict(line)
            self.failed.pop(str(line["id"]), None)


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
            self._entries = self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The records by id, in the order in which they were written."""
        return self._entries.records

    def append(self, record: dict[str, Any]) -> None:
        """Write one record (with its `id`) and see it on disk before returning."""
        self._note(record)

    def note_asked(self, asked: Mapping[str, str]) -> None:
        """Write down what this run is to bring: id → cluster. Nothing is written that is known already."""
        if new := {name: cluster for name, cluster in asked.items() if self._entries.asked.get(name) != cluster}:
            self._note({"asked": new})

    def note_failure(self, name: str, code: str, reason: str) -> None:
        """Write down that an id failed; a later record of it ends that."""
        self._note({"failed": name, "code": code, "reason": reason})

    def _note(self, line: dict[str, Any]) -> None:
        self._write(line)
        self._entries.add(line)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{self.path} is being written by another process") from error

    def _recover(self) -> Entries:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        if not whole:
            self._write({"config": self.config, "digest": config_digest(self.config)})
            return Entries()
        config, entries = parse_journal(self.path, content[:whole])
        if config_digest(config) != config_digest(self.config):
            raise JournalError(
                f"{self.path} holds a run with another configuration: {_difference(config, self.config)}"
            )
        return entries

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_entries(path: Path) -> tuple[dict[str, Any], Entries]:
    """Return configuration and entries of a journal, which may be in writing; its last, unfinished line is left out.

    Raises:
        JournalError: the file is no journal.
    """
    content = path.read_bytes()
    return parse_journal(path, content[: content.rfind(b"\n") + 1])


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return configuration and records of a journal, read like `read_entries`.

    Raises:
        JournalError: the file is no journal.
    """
    config, entries = read_entries(path)
    return config, list(entries.records.values())


def parse_journal(path: Path, content: bytes) -> tuple[dict[str, Any], Entries]:
    """Return configuration and entries.

    Raises:
        JournalError: the first line is no configuration, or a line is not JSON.
    """
    try:
        documents = [json.loads(line) for line in content.splitlines()]
        config: dict[str, Any] = documents[0]["config"]
        entries = Entries()
        for line in documents[1:]:
            entries.add(line)
        return config, entries
    except (ValueError, LookupError, TypeError) as error:
        raise JournalError(f"{path} is not a journal of a run: {error}") from error


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    names = [name for name in sorted({*stored, *asked}) if stored.get(name) != asked.get(name)]
    return ", ".join(f"{name} is {stored.get(name)!r} there and {asked.get(name)!r} here" for name in names)
