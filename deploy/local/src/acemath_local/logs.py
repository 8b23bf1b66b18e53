"""The services' log files, followed and shown with the service's name before each line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_STANDARD = ("time", "level", "logger", "message")
_MAX_LINE = 4000


@dataclass(slots=True)
class _Followed:
    path: Path
    position: int = 0
    inode: int = 0
    partial: bytes = b""


class LogFollower:
    """Follows files that are appended to and rotated; hands each complete line on, prefixed.

    Args:
        files: service name → its log file; a file may appear later. What is in them already is not shown.
        emit: takes each line.
    """

    def __init__(self, files: dict[str, Path], emit: Callable[[str], None]) -> None:
        self._files = {
            name: _Followed(path, path.stat().st_size if path.exists() else 0) for name, path in files.items()
        }
        self._emit, self._width = emit, max((len(name) for name in files), default=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def __enter__(self) -> LogFollower:
        """Begin to follow."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show what is left and end."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        for name, followed in self._files.items():
            for line in _new_lines(followed):
                self._emit(f"{name:<{self._width}} │ {readable(line)[:_MAX_LINE]}")


def _new_lines(followed: _Followed) -> Iterator[str]:
    try:
        status = followed.path.stat()
    except FileNotFoundError:
        return
    rotated = followed.inode not in (0, status.st_ino) or status.st_size < followed.position
    followed.position = 0 if rotated else followed.position
    followed.inode = status.st_ino
    if status.st_size == followed.position:
        return
    with followed.path.open("rb") as file:
        file.seek(followed.position)
        *lines, followed.partial = (followed.partial + file.read()).split(b"\n")
        followed.position = file.tell()
    yield from (line.decode(errors="replace") for line in lines)


def readable(line: str) -> str:
    """A JSON log line as a person reads it: level, message, then the other fields as name=value; others unchanged."""
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict) or "message" not in record:
        return line
    rest = " ".join(f"{key}={value}" for key, value in record.items() if key not in _STANDARD)
    return f"{record.get('level', ''):<7} {record['message']} {rest}".rstrip()
