"""Files to and from a bucket: large ones in parts, several at once, each part with a digest and tried again.

An upload becomes visible in one step, when its last request says which parts it is made of. A download asks for the
parts of one state of the object (`If-Match`); whoever asked for it checks its sha256.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from acemath_registry.durable import create_file, finish_file, open_regular
from acemath_registry.errors import StorageError
from acemath_registry.stores.port import Advance
from acemath_registry.stores.refusals import Refusal, refusal_of, s3_errors
from acemath_registry.stores.s3 import (
    ABSENT,
    ATTEMPTS,
    CONNECTIONS,
    S3Bucket,
    condition,
    md5_of,
    parts_of,
)

PART_BYTES: Final = 16 * 1024 * 1024
_MOST_PARTS: Final = 9000  # the API allows 10,000
_T = TypeVar("_T")


def upload_file(
    bucket: S3Bucket, path: Path, key: str, *, sha256: str, advance: Advance, part_bytes: int = PART_BYTES
) -> bool:
    """Write a new object from a file; False when there is one already (nothing was written).

    Raises:
        OSError: the file can not be read.
        StorageError: the store refused; no part of the file is visible, and what was uploaded is taken back.
    """
    bucket.require_conditions()
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > part_bytes:
            return _in_parts(bucket, key, descriptor, advance, parts_of(size, part_bytes, _MOST_PARTS), sha256)
        written = bucket.put(key, os.pread(descriptor, size, 0), only_if=ABSENT, sha256=sha256)
        advance(size)
        return written
    finally:
        os.close(descriptor)


def download_file(bucket: S3Bucket, key: str, path: Path, *, advance: Advance, part_bytes: int = PART_BYTES) -> None:
    """Write an object's bytes to a new file of mode 0600, durable before return.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: the file can not be written.
        StorageError: the store refused, or the object was replaced meanwhile.
    """
    facts = bucket.facts(key)
    descriptor = create_file(path)
    try:
        download = _Download(bucket, key, facts.tag, descriptor, advance)
        _at_once(download.part, parts_of(facts.size, part_bytes, facts.size // part_bytes + 1))
        finish_file(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _in_parts(
    bucket: S3Bucket, key: str, descriptor: int, advance: Advance, parts: Sequence[tuple[int, int]], sha256: str
) -> bool:
    for left in reversed(range(ATTEMPTS)):
        refused = _Upload(bucket, key, descriptor, advance).run(parts, sha256)
        if refused is None or not refused.undecided or not left:
            return refused is None
        advance = _unheard  # the store ends an upload whose last request it did not decide: all parts are sent again
    raise AssertionError("unreachable")


def _unheard(chunk_bytes: int) -> None:
    """Bytes that were counted before."""


class _Upload:
    def __init__(self, bucket: S3Bucket, key: str, descriptor: int, advance: Advance) -> None:
        self._bucket, self._key, self._descriptor = bucket, key, descriptor
        self._advance = _one_at_a_time(advance)
        self._address = {"Bucket": bucket.name, "Key": key}

    def run(self, parts: Iterable[tuple[int, int]], sha256: str) -> Refusal | None:
        client = self._bucket.client
        with s3_errors(self._bucket.name, f"writing {self._key}"):
            begun = client.create_multipart_upload(**self._address, Metadata={"sha256": sha256})
            self._address["UploadId"] = begun["UploadId"]
            try:
                tags = _at_once(self._part, [(number, *part) for number, part in enumerate(parts, 1)])
                listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
                options = dict(self._address, MultipartUpload={"Parts": listed}, **condition(ABSENT))
                refused = refusal_of(lambda: client.complete_multipart_upload(**options))
            except BaseException:
                self._abort()
                raise
        if refused is not None:
            self._abort()
        return refused

    def _part(self, part: tuple[int, int, int]) -> str:
        number, offset, length = part
        data = os.pread(self._descriptor, length, offset)
        answer = self._bucket.client.upload_part(**self._address, PartNumber=number, Body=data, ContentMD5=md5_of(data))
        self._advance(length)
        return str(answer["ETag"])

    def _abort(self) -> None:
        # What cannot be taken back now is invisible, and goes by the bucket's rule for unfinished uploads.
        with suppress(StorageError, OSError), s3_errors(self._bucket.name, f"taking back {self._key}"):
            self._bucket.client.abort_multipart_upload(**self._address)


class _Download:
    def __init__(self, bucket: S3Bucket, key: str, tag: str, descriptor: int, advance: Advance) -> None:
        self._bucket, self._key, self._tag, self._descriptor = bucket, key, tag, descriptor
        self._advance = _one_at_a_time(advance)

    def part(self, part: tuple[int, int]) -> None:
        data = self._read(*part)
        view, offset = memoryview(data), part[0]
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
        self._advance(len(data))

    def _read(self, offset: int, length: int) -> bytes:
        """A request is tried again by botocore, a body that breaks off is not."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return self._read_once(offset, length)
            except StorageError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _read_once(self, offset: int, length: int) -> bytes:
        asked: dict[str, Any] = {"Range": f"bytes={offset}-{offset + length - 1}", "IfMatch": self._tag}
        with s3_errors(self._bucket.name, f"reading {self._key}"):
            answer = self._bucket.client.get_object(Bucket=self._bucket.name, Key=self._key, **asked)
            with answer["Body"] as body:
                data: bytes = body.read()
        if len(data) != length:
            raise StorageError(f"reading {self._key} in bucket {self._bucket.name} broke off; try again later")
        return data


def _at_once(work: Callable[[Any], _T], items: Iterable[Any]) -> list[_T]:
    """Do the work on each item, a few at a time; a failure is raised when what had begun has ended."""
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _one_at_a_time(advance: Advance) -> Advance:
    """Parts end in several threads; who counts does it in one."""
    telling = threading.Lock()

    def tell(chunk_bytes: int) -> None:
        with telling:
            advance(chunk_bytes)

    return tell
