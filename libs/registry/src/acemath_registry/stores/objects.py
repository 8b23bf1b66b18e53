"""A registry in a bucket: an object for each file, under the same names.

There is no rename and no lock. So the manifest, created only if there is none, is what makes a version visible, after
all its files; a channel changes by `If-Match`; and what a version's manifest does not name is no part of the version: a
publisher that was killed leaves objects that nobody asks for, until a collection takes them (`uploads`). Whatever is
read by the rules of a file system (headers of tensors, signatures, merging) is downloaded into a private directory
first.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath

from acemath_registry.documents import MAX_DOCUMENT_BYTES
from acemath_registry.durable import read_file
from acemath_registry.errors import Conflict, InvalidRequest, RejectReason, VerificationError, storage_errors
from acemath_registry.files import OWN_NAMES
from acemath_registry.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest, decode_manifest
from acemath_registry.progress import Progress, counter, no_progress
from acemath_registry.refs import ModelRef
from acemath_registry.stores import log as log_pieces
from acemath_registry.stores import removal, uploads
from acemath_registry.stores.conditional import ConditionalChange
from acemath_registry.stores.port import Advance, Leftover, Overtaken
from acemath_registry.stores.s3 import ABSENT, ObjectFacts, S3Bucket
from acemath_registry.stores.scratch import checkpoint_scratch, private
from acemath_registry.stores.staging import STALE_STAGING_S
from acemath_registry.stores.transfer import download_file, upload_file
from acemath_registry.verify import check_names, check_sizes, read_manifest


class ObjectStore:
    """`Store` on a bucket.

    Args:
        bucket: where the objects are.
    """

    def __init__(self, bucket: S3Bucket) -> None:
        self.bucket = bucket

    def read(self, path: PurePath) -> bytes:
        """See `Documents.read`; an object without bytes counts as none."""
        data = ConditionalChange(self.bucket, str(path)).read()
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "is not in the bucket", str(path))
        return data

    def replace(self, path: PurePath, data: bytes) -> None:
        """See `Documents.replace`."""
        self.bucket.put(str(path), data)

    def create(self, path: PurePath, data: bytes) -> bool:
        """See `Documents.create`."""
        change = ConditionalChange(self.bucket, str(path))
        if change.read() is not None:
            return False
        try:
            change.write(data)
        except Overtaken:
            return False
        return True

    def remove(self, path: PurePath) -> None:
        """See `Documents.remove`."""
        self.bucket.facts(str(path))
        self.bucket.delete(str(path))

    @contextmanager
    def changing(self, path: PurePath, lock: PurePath) -> Iterator[ConditionalChange]:
        """See `Documents.changing`: no lock; of two changes the second loses."""
        yield ConditionalChange(self.bucket, str(path))

    def names(self, folder: PurePath) -> list[str]:
        """See `Documents.names`."""
        names, _ = self.bucket.children(_prefix(folder))
        return sorted(name[:-5] for name in names if name.endswith(".json") and not name.startswith("."))

    def folders(self, folder: PurePath) -> list[str]:
        """See `Documents.folders`."""
        return sorted(self.bucket.children(_prefix(folder))[1])

    def mark(self, path: PurePath) -> Hashable | None:
        """See `Documents.mark`; a store that does not answer is not asked for the document, too."""
        try:
            return self.bucket.facts(str(path)).tag
        except FileNotFoundError:
            return None

    def append(self, log: PurePath, lock: PurePath, line: bytes) -> None:
        """See `Documents.append`."""
        log_pieces.append(self.bucket, log, line)

    def tail(self, log: PurePath, limit_bytes: int) -> list[bytes]:
        """See `Documents.tail`."""
        return log_pieces.tail(self.bucket, log, limit_bytes)

    def exists(self, root: PurePath) -> bool:
        """See `Versions.exists`: something is there."""
        return self.bucket.has_any(_prefix(root))

    def versions(self, models: PurePath, holding: str | None = None) -> list[tuple[str, str]]:
        """See `Versions.versions`; without a manifest there is none."""
        prefix, name = _prefix(models), holding or MANIFEST_NAME
        parts = (key[len(prefix) :].split("/") for key, _ in self.bucket.sizes(prefix))
        return [(part[0], part[1]) for part in parts if len(part) == 3 and part[2] == name]

    def has(self, version: PurePath) -> bool:
        """See `Versions.has`."""
        try:
            self.bucket.facts(str(version / MANIFEST_NAME))
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def opened(self, version: PurePath, names: Collection[str]) -> Iterator[Path]:
        """See `Versions.opened`: a copy of the files, gone at the end."""
        with private() as here:
            with storage_errors(_downloading(version)):
                directory = self._mirror(version, names, here)
            yield directory

    @contextmanager
    def gathered(
        self, version: PurePath, scratch: Path | None = None, progress: Progress = no_progress
    ) -> Iterator[Path]:
        """See `Versions.gathered`: a copy of everything, gone at the end."""
        with checkpoint_scratch() if scratch is None else private(scratch) as here:
            with storage_errors(_downloading(version)):
                directory = self._whole(version, here, progress)
                adapter = _manifest_in(directory).adapter if directory.is_dir() else None
                if adapter is not None:
                    with suppress(InvalidRequest):  # who reads the version says that its base can be no version
                        base = version.parent.parent / adapter.base_ref.name / adapter.base_ref.version
                        self._whole(base, here, progress)
            yield directory

    def _whole(self, version: PurePath, into: Path, progress: Progress) -> Path:
        directory = self._mirror(version, OWN_NAMES, into)
        if directory.is_dir():
            files = _manifest_in(directory).stored_files
            advance = counter(progress, "downloading", sum(entry.size for entry in files))
            self._mirror(version, [entry.path for entry in files], into, advance)
        return directory

    def _mirror(self, version: PurePath, names: Collection[str], into: Path, advance: Advance | None = None) -> Path:
        """Put those of the files that there are below `into`; no directory where there is no manifest."""
        directory = into / "models" / version.parent.name / version.name
        try:
            manifest, _ = self.bucket.get(str(version / MANIFEST_NAME), MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            return directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MANIFEST_NAME).write_bytes(manifest)
        for name in names:
            if _is_plain(name) and name != MANIFEST_NAME:
                with suppress(FileNotFoundError):
                    download_file(self.bucket, str(version / name), directory / name, advance=advance or _unheard)
        return directory

    def check_listing(self, manifest: Manifest, version: PurePath) -> None:
        """See `Versions.check_listing`; sizes too, since gigabytes would follow."""
        prefix = _prefix(version)
        found = {key[len(prefix) :]: size for key, size in self.bucket.sizes(prefix)}
        sizes = {entry.path: found[entry.path] for entry in manifest.files if entry.path in found}
        check_names(manifest, manifest.files, sizes)
        check_sizes(manifest.files, sizes)

    def fetch(self, version: PurePath, names: Collection[str], into: Path, advance: Advance) -> None:
        """See `Versions.fetch`."""
        for name in names:
            download_file(self.bucket, str(version / name), into / name, advance=advance)

    @contextmanager
    def staging(self, folder: PurePath) -> Iterator[Path]:
        """See `Versions.staging`: on this machine's disk for temporary files (`TMPDIR`)."""
        with checkpoint_scratch() as here:
            yield here

    def install(self, staged: Path, version: PurePath, progress: Progress) -> bool:
        """See `Versions.install`: files, then the manifest, which makes them a version, then its signature."""
        if self.has(version):
            return False
        manifest, since = _manifest_in(staged), time.time()
        advance = counter(progress, "uploading", sum(entry.size for entry in manifest.stored_files))
        for entry in manifest.stored_files:
            self._upload(staged / entry.path, str(version / entry.path), entry, advance)
        data = read_file(staged / MANIFEST_NAME, MAX_DOCUMENT_BYTES)
        uploads.require_in_time(version, since)
        if not self.bucket.put(str(version / MANIFEST_NAME), data, only_if=ABSENT):
            return False
        with suppress(FileNotFoundError):  # only whose manifest it is may sign: two publishers' differ in their times
            self.attach(version, SIGNATURE_NAME, read_file(staged / SIGNATURE_NAME, MAX_DOCUMENT_BYTES), staged)
        return True

    def _upload(self, path: Path, key: str, entry: FileEntry, advance: Advance) -> None:
        try:
            there = self.bucket.facts(key)  # else gigabytes would be sent before their last request is refused
            advance(entry.size)
        except FileNotFoundError:
            if upload_file(self.bucket, path, key, sha256=entry.sha256, advance=advance):
                return
            there = self.bucket.facts(key)
        if self._is_that(key, there, entry):
            return  # another publisher of the same, or one that was killed
        if time.time() - there.modified_s > STALE_STAGING_S:
            self.bucket.delete(key)
            if upload_file(self.bucket, path, key, sha256=entry.sha256, advance=_unheard):
                return
        raise Conflict(
            f"{key} was written by another publisher of this version, which has not finished; wait for it, or remove "
            "the objects of the version, which has no manifest, then publish again"
        )

    def verify_again(self, ref: ModelRef, version: PurePath) -> Manifest:
        """See `Versions.verify_again`: by the digests that each file was uploaded with."""
        with self.opened(version, OWN_NAMES) as directory:
            stored = read_manifest(ref, directory)
        for entry in stored.stored_files:
            self._check(str(version / entry.path), entry)
        return stored

    def _check(self, key: str, entry: FileEntry) -> None:
        try:
            found = self.bucket.facts(key)
        except FileNotFoundError as error:
            said = "is in the manifest but not in the bucket"
            raise VerificationError(RejectReason.FILE_MISSING, said, file=entry.path) from error
        if not self._is_that(key, found, entry):
            said = "is not what the manifest says"
            raise VerificationError(RejectReason.CHECKSUM_MISMATCH, said, file=entry.path)

    def _is_that(self, key: str, found: ObjectFacts, entry: FileEntry) -> bool:
        """Whether an object is a file, by the digest beside it; one that lost it (a copy of a bucket) is downloaded."""
        if found.size != entry.size or found.sha256 is not None:
            return (found.size, found.sha256) == (entry.size, entry.sha256)
        with checkpoint_scratch() as here, storage_errors(f"reading {key}"):
            download_file(self.bucket, key, here / "file", advance=_unheard)
            with (here / "file").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

    def attach(self, version: PurePath, name: str, data: bytes, staging: PurePath) -> None:
        """See `Versions.attach`."""
        self.bucket.put(str(version / name), data)

    @contextmanager
    def alone(self, lock: PurePath) -> Iterator[None]:
        """See `Versions.alone`: two may run, since who removes makes the mark its own; killed ones are followed."""
        removal.sweep(self.bucket, lock.parent.parent)
        yield

    def sweep(self, root: PurePath, staging: PurePath, older_than_s: float) -> None:
        """See `Versions.sweep`: uploads without a manifest; scratch on the publisher's own disk goes by itself."""
        uploads.sweep(self.bucket, root, max(older_than_s, STALE_STAGING_S))

    def leftovers(self, root: PurePath, staging: PurePath, older_than_s: float) -> list[Leftover]:
        """See `Versions.leftovers`."""
        return uploads.left(self.bucket, root, max(older_than_s, STALE_STAGING_S))

    def unmark(self, mark: PurePath) -> bool:
        """See `Versions.unmark`."""
        return removal.unmark(self.bucket, mark)

    def announced(self, note: PurePath, data: bytes, marks: Sequence[PurePath]) -> AbstractContextManager[None]:
        """See `Versions.announced`."""
        return removal.announced(self.bucket, note, data, marks)

    def removing(self, version: PurePath, mark: PurePath, staging: PurePath) -> AbstractContextManager[removal.Removal]:
        """See `Versions.removing`."""
        return removal.removing(self.bucket, version, mark)


def _manifest_in(directory: Path) -> Manifest:
    return decode_manifest(read_file(directory / MANIFEST_NAME, MAX_DOCUMENT_BYTES))


def _is_plain(name: str) -> bool:
    """Whether a name out of a manifest stays in its directory; another one is refused by who reads the version."""
    return PurePath(name).name == name and name not in {"", ".", ".."}


def _downloading(version: PurePath) -> str:
    return f"downloading {version.parent.name}@{version.name}"


def _prefix(folder: PurePath) -> str:
    return f"{folder}/" if folder.parts else ""


def _unheard(chunk_bytes: int) -> None:
    """Small files, or the second try of a large one."""
