"""Removing a version from an object store, which has no locks: two writes, each before the other's read.

Who is about to need a version first writes an announcement, then reads its mark. Who removes one first sets its mark
to *removing*, by compare-and-set, then reads the announcements and everything else that names versions. The store shows
what was written to every later read, so at least one of the two sees the other, and gives way: the first is told to
wait, the second sets the mark back. The manifest goes first, so that no reader finds a half.

A mark that was withdrawn is an empty object (not every store deletes conditionally). A collector that was killed is
followed an hour later: what it had begun to take away goes by the next one, which first makes the mark its own; and
where the manifest still lies there, its mark counts as any other.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Any, Final

from acemath_core.errors import ServiceError
from acemath_registry.documents import MAX_DOCUMENT_BYTES, encode
from acemath_registry.errors import Conflict
from acemath_registry.manifest import MANIFEST_NAME
from acemath_registry.stores.conditional import ConditionalChange
from acemath_registry.stores.port import ANNOUNCEMENTS, Overtaken
from acemath_registry.stores.s3 import S3Bucket
from acemath_registry.stores.staging import STALE_STAGING_S

_log = logging.getLogger(__name__)
DEAD_AFTER_S: Final = 3600.0
"""A collector that has been removing one version for longer was killed."""
_REMOVING: Final = "removing_since"  # Unix time, in a mark
_TRIES: Final = 8


class Removal:
    """A version that is about to be removed; see `port.Removal`.

    Args:
        bucket: where it is.
        version: its folder.
        mark: the name of its mark.
        refused: why it can not be removed now.
    """

    def __init__(self, bucket: S3Bucket, version: PurePath, mark: PurePath, refused: str | None) -> None:
        self._bucket, self._version, self._mark = bucket, version, mark
        self._began, self.refused, self.gone = time.time(), refused, False

    def go(self) -> None:
        """See `port.Removal.go`.

        Raises:
            Conflict: it took so long to look for who needs the version that others may take this one for dead.
        """
        if time.time() - self._began > DEAD_AFTER_S / 2:  # the clock that others compare with the mark
            raise Conflict(f"{self._version.parent.name}@{self._version.name}: it took too long; run gc again")
        self.gone = True
        self._bucket.delete(str(self._version / MANIFEST_NAME))

    def clean(self) -> None:
        """See `port.Removal.clean`; the mark goes last, since it keeps publishers out."""
        for key, _ in self._bucket.sizes(f"{self._version}/"):
            self._bucket.delete(key)
        self._bucket.delete(str(self._mark))


@contextmanager
def removing(bucket: S3Bucket, version: PurePath, mark: PurePath, *, unmarked: bool = False) -> Iterator[Removal]:
    """See `port.Versions.removing`; what is `unmarked` is no version (`uploads`), and needs no mark from before."""
    change = ConditionalChange(bucket, str(mark))
    found, since = _document(change.read()), time.time()
    document = found or ({"at": since, "by": "gc", "why": "it has no manifest"} if unmarked else {})
    refused = _why_not(document, since)
    if refused is None:
        try:
            change.write(encode({**document, _REMOVING: since}))
        except Overtaken:
            refused = "its mark was changed just now"
    removal = Removal(bucket, version, mark, refused)
    try:
        yield removal
    finally:
        if refused is None and not removal.gone:
            with suppress(Overtaken):
                if _document(change.read()).get(_REMOVING) == since:  # else somebody took it for dead
                    before = {key: value for key, value in found.items() if key != _REMOVING}
                    change.write(encode(before) if found else b"")


def unmark(bucket: S3Bucket, mark: PurePath) -> bool:
    """See `port.Versions.unmark`."""
    for left in reversed(range(_TRIES)):
        change = ConditionalChange(bucket, str(mark))
        data = change.read()
        if data is None:
            return False
        _refuse_removed(bucket, mark, _document(data))
        try:
            change.write(b"")
        except Overtaken:
            if not left:
                raise
        else:
            return True
    raise AssertionError("unreachable")


@contextmanager
def announced(bucket: S3Bucket, note: PurePath, data: bytes, marks: Sequence[PurePath]) -> Iterator[None]:
    """See `port.Versions.announced`."""
    bucket.put(str(note), data)
    try:
        for mark in marks:
            _refuse_removed(bucket, mark, _document(ConditionalChange(bucket, str(mark)).read()))
        yield
    finally:
        _take_back(bucket, note)


def _take_back(bucket: S3Bucket, note: PurePath) -> None:
    """What was done under the announcement is done: one that stays only keeps versions, until the sweep."""
    try:
        bucket.delete(str(note))
    except (ServiceError, OSError) as error:
        _log.warning("%s stays until a collection sweeps it, a day from now: %s", note, error)


def sweep(bucket: S3Bucket, root: PurePath) -> None:
    """End what killed collectors and promoters began: objects without a manifest under a mark, old announcements."""
    for key, _ in bucket.sizes(f"{root / 'status' / ANNOUNCEMENTS}/"):
        with suppress(FileNotFoundError):
            if time.time() - bucket.facts(key).modified_s > STALE_STAGING_S:
                bucket.delete(key)
    for key, _ in bucket.sizes(f"{root / 'tombstones'}/"):
        _follow_killed(bucket, root, PurePath(key))


def _follow_killed(bucket: S3Bucket, root: PurePath, mark: PurePath) -> None:
    """End a removal whose collector was killed; of two who would, one makes the mark its own."""
    version = _version_of(mark)
    document = _document(ConditionalChange(bucket, str(mark)).read())
    if not _was_killed(document) or _is_there(bucket, version):
        return
    with removing(bucket, version, mark) as going:
        # A publisher that came before the mark is at work where an upload's rest was to go.
        going.gone = going.refused is None and nobody_needs(bucket, root, version)
    if going.gone:
        going.clean()


def nobody_needs(bucket: S3Bucket, root: PurePath, version: PurePath) -> bool:
    """Whether nobody makes a version of what lies in its folder; asked under its mark, it stays so."""
    said = f"{version.parent.name}@{version.name}".encode()
    # In this order: who has taken his announcement back has written the manifest before.
    return not any(said in note for note in announcements(bucket, root)) and not _is_there(bucket, version)


def announcements(bucket: S3Bucket, root: PurePath) -> list[bytes]:
    """What those said who are about to need a version, or to publish one."""
    notes: list[bytes] = []
    for key, _ in bucket.sizes(f"{root / 'status' / ANNOUNCEMENTS}/"):
        with suppress(FileNotFoundError):  # taken back since
            notes.append(bucket.get(key, MAX_DOCUMENT_BYTES)[0])
    return notes


def _is_there(bucket: S3Bucket, version: PurePath) -> bool:
    try:
        bucket.facts(str(version / MANIFEST_NAME))
    except FileNotFoundError:
        return False
    return True


def _version_of(mark: PurePath) -> PurePath:
    """The folder of the version that a mark `tombstones/<name>/<version>.json` is of."""
    return mark.parent.parent.parent / "models" / mark.parent.name / mark.stem


def _was_killed(document: dict[str, Any]) -> bool:
    return _REMOVING in document and time.time() - document[_REMOVING] > DEAD_AFTER_S


def _why_not(document: dict[str, Any], now: float) -> str | None:
    if not document:
        return "its mark was withdrawn"
    if now - document.get(_REMOVING, -DEAD_AFTER_S) < DEAD_AFTER_S:
        return "another collection is removing it"
    return None


def _refuse_removed(bucket: S3Bucket, mark: PurePath, document: dict[str, Any]) -> None:
    if _REMOVING not in document or (_was_killed(document) and _is_there(bucket, _version_of(mark))):
        return
    raise Conflict(
        f"{mark.parent.name}@{mark.stem} is being removed (acemath registry gc); publish it again when it is gone; "
        "if that gc was killed, run gc again in an hour",
        should_retry=False,
    )


def _document(data: bytes | None) -> dict[str, Any]:
    """What a mark says; nothing where there is none. A damaged one is told by who reads it for its time."""
    try:
        document = json.loads(data or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
