"""The port between the registry's rules and the place that it lies on.

Every method takes paths below the registry's root as `layout.Layout` makes them: names, which only `Disk` may open. A
method raises `OSError` (`FileNotFoundError` where there is nothing) or a `ServiceError` that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, Protocol

from acemath_core.errors import Conflict
from acemath_registry.manifest import Manifest
from acemath_registry.progress import Progress, no_progress
from acemath_registry.refs import ModelRef

Advance = Callable[[int], None]
"""Hears of the bytes of each chunk."""

ANNOUNCEMENTS: Final = "promoting"
"""Where those who are about to need a version say so, among the status records."""


class Overtaken(Conflict):
    """A compare-and-set lost: somebody changed the document since it was read, and nothing was written."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What somebody left who was killed while publishing or removing.

    Attributes:
        path: of its folder.
        size: bytes of the files in it.
        until: Unix time at which a collection may remove it.
    """

    path: str
    size: int
    until: float


class Change(Protocol):
    """One document that is read, and then written if nobody has written it since."""

    def read(self) -> bytes | None:
        """What is there now; None for nothing."""

    def write(self, data: bytes) -> None:
        """Put `data` in its place, in one step; raises `Overtaken` when what was read is no longer there."""


class Removal(Protocol):
    """A version that is about to be removed."""

    @property
    def refused(self) -> str | None:
        """Why it can not be removed now; None when it can."""

    def go(self) -> None:
        """Make it invisible, in one step; within the block of `Versions.removing`."""

    def clean(self) -> None:
        """Free what it took, and take its mark away; after that block."""


class Documents(Protocol):
    """Small files. A reader sees the old bytes or the new ones, also after a crash."""

    def read(self, path: PurePath) -> bytes:
        """Its bytes; more than `documents.MAX_DOCUMENT_BYTES` are an error."""

    def replace(self, path: PurePath, data: bytes) -> None:
        """Put it in place, durable before return; the last one wins."""

    def create(self, path: PurePath, data: bytes) -> bool:
        """Put it in place where nothing is, as `replace`; False where something is, which stays."""

    def remove(self, path: PurePath) -> None:
        """Take it away, durably."""

    def changing(self, path: PurePath, lock: PurePath) -> AbstractContextManager[Change]:
        """Read and write a document while no other change of it takes place, or so that one of two changes loses.

        Raises:
            LockTimeout: another one held `lock`, where the place has locks, for too long.
        """

    def names(self, folder: PurePath) -> list[str]:
        """The documents `<name>.json` right in the folder, sorted, without hidden ones; none where there is none."""

    def folders(self, folder: PurePath) -> list[str]:
        """The folders right in the folder, sorted; none where there is none."""

    def mark(self, path: PurePath) -> Hashable | None:
        """Another value after each change of the document; None when there is none, or it can not be told."""

    def append(self, log: PurePath, lock: PurePath, line: bytes) -> None:
        """Append a line, which ends in a newline, to a log, durable before return; concurrent lines all stay."""

    def tail(self, log: PurePath, limit_bytes: int) -> list[bytes]:
        """The last lines of a log, the oldest first, of at most about so many bytes."""


class Versions(Protocol):
    """Directories of files that are written once and seen as a whole or not at all."""

    def exists(self, root: PurePath) -> bool:
        """Whether there is a registry."""

    def versions(self, models: PurePath, holding: str | None = None) -> list[tuple[str, str]]:
        """Name and version of each directory `<name>/<version>`, or of those that hold a file of this name."""

    def has(self, version: PurePath) -> bool:
        """Whether it can be seen."""

    def opened(self, version: PurePath, names: Collection[str]) -> AbstractContextManager[Path]:
        """A directory on this machine, for reading, with those of the small files `names` that the version has."""

    def gathered(
        self, version: PurePath, scratch: Path | None = None, progress: Progress = no_progress
    ) -> AbstractContextManager[Path]:
        """A directory `models/<name>/<version>` on this machine with all files of the version, for reading.

        The base of an adapter version lies beside it. What has to be downloaded for it goes into the new directory
        `scratch`, or where temporary files go, and is gone at the end; `progress` hears of it.
        """

    def check_listing(self, manifest: Manifest, version: PurePath) -> None:
        """Refuse a whole version whose files are not those of its manifest; raises `VerificationError`."""

    def fetch(self, version: PurePath, names: Collection[str], into: Path, advance: Advance) -> None:
        """Copy files of the version to new files (mode 0600) in `into`, durable before return."""

    def staging(self, folder: PurePath) -> AbstractContextManager[Path]:
        """A private, empty directory on this machine from which `install` is quick; nothing is left of it."""

    def install(self, staged: Path, version: PurePath, progress: Progress) -> bool:
        """Make a staged directory the version, all of it in one step; False when there is one already."""

    def verify_again(self, ref: ModelRef, version: PurePath) -> Manifest:
        """The manifest of a version that is there, after its files were looked at; raises `VerificationError`."""

    def attach(self, version: PurePath, name: str, data: bytes, staging: PurePath) -> None:
        """Put a file of the registry's own into a version, in place of an earlier one, in one step."""

    def alone(self, lock: PurePath) -> AbstractContextManager[None]:
        """No other collection of unused versions runs while the block does; raises `LockTimeout`."""

    def sweep(self, root: PurePath, staging: PurePath, older_than_s: float) -> None:
        """Remove what those left who were killed while they published, collected or wrote; nothing of who lives.

        Args:
            root: of the registry.
            staging: its folder of versions that are being published.
            older_than_s: seconds; what would be too young to tell the dead from the living by is kept whatever it says:
                a folder in `staging`, or in a bucket what was uploaded without its manifest, for a day, a document that
                was to replace another for a minute.
        """

    def leftovers(self, root: PurePath, staging: PurePath, older_than_s: float) -> list[Leftover]:
        """What `sweep` with these arguments removes, now or when it is old enough."""

    def unmark(self, mark: PurePath) -> bool:
        """Take away the mark of a version that was to be removed, durably; False when there is none.

        Raises:
            Conflict: it is being removed.
        """

    def announced(self, note: PurePath, data: bytes, marks: Sequence[PurePath]) -> AbstractContextManager[None]:
        """Where there are no locks: say in `note` that somebody is about to need what `data` names.

        Args:
            note: a status record; it is gone at the end of the block.
            data: its content.
            marks: where the marks of what is needed would be.

        Raises:
            Conflict: one of them is being removed.
        """

    def removing(self, version: PurePath, mark: PurePath, staging: PurePath) -> AbstractContextManager[Removal]:
        """Nobody begins to use the marked version while the block runs: whoever comes second sees the other one."""


class Store(Documents, Versions, Protocol):
    """All that a registry needs."""
