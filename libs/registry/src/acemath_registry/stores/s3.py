"""The S3 API, by botocore (the extra `s3`), which is imported and connected at the first request.

Credentials, region and endpoint are found as every AWS tool finds them: `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, a role of
the machine, `AWS_REGION`, `AWS_ENDPOINT_URL`. Each request has a deadline and is tried four times at most. Whether the
store obeys conditions is tried once before the first of them, since one that does not would lose updates silently.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from acemath_core.errors import ServiceError
from acemath_registry.errors import InvalidRequest, StorageError
from acemath_registry.stores.refusals import (
    MISSING,
    NoCredentials,
    code_of,
    decided,
    may_be_done,
    refused_as,
    s3_errors,
)

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 30
ATTEMPTS: Final = 4
CONNECTIONS: Final = 8
PAGE_KEYS: Final = 1000
ABSENT: Final = "*"
"""As a condition: only if there is no such object."""

_UNKNOWN_CONDITION: Final = frozenset({"NotImplemented", "501", "InvalidArgument", "InvalidRequest"})
_NO_ENDPOINT: Final = "AWS_ENDPOINT_URL is no address of a store: it needs http:// or https:// before the host"
_NOBODYS_TAG: Final = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What the store says of one object.

    Attributes:
        size: bytes.
        tag: its ETag; another one after each change of its content.
        sha256: as its publisher said, 64 hex digits; None when it did not.
        modified_s: Unix time of its writing, by the store's clock.
    """

    size: int
    tag: str
    sha256: str | None
    modified_s: float


class S3Bucket:
    """One bucket. Every method blocks on the network.

    Args:
        name: of the bucket.
        probe_key: an empty object that may be written there, to find out whether the store obeys conditions.
    """

    def __init__(self, name: str, probe_key: str) -> None:
        self.name, self._probe_key = name, probe_key
        self._connecting, self._obeys = threading.Lock(), False
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The connection, made at the first call."""
        with self._connecting:
            if self._client is None:
                self._client = connect(self.name)
            return self._client

    def get(self, key: str, limit_bytes: int) -> tuple[bytes, str]:
        """An object's bytes and tag.

        Raises:
            FileNotFoundError: there is none.
            OSError: (EMSGSIZE) it has more than `limit_bytes`.
        """
        with self._errors(f"reading {key}"):
            answer = self.client.get_object(Bucket=self.name, Key=key)
            with answer["Body"] as body:
                data: bytes = body.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise OSError(errno.EMSGSIZE, f"is larger than {limit_bytes} bytes", key)
        return data, str(answer["ETag"])

    def facts(self, key: str) -> ObjectFacts:
        """What the store says of an object; raises `FileNotFoundError` when there is none."""
        with self._errors(f"looking at {key}"):
            found = self.client.head_object(Bucket=self.name, Key=key)
        said = found.get("Metadata", {}).get("sha256")
        return ObjectFacts(int(found["ContentLength"]), str(found["ETag"]), said, found["LastModified"].timestamp())

    def put(self, key: str, data: bytes, *, only_if: str | None = None, sha256: str | None = None) -> bool:
        """Write an object in one step, durable before return.

        Args:
            key: its name.
            data: its bytes.
            only_if: the tag that it must have, or `ABSENT`; None to write whatever is there.
            sha256: of a file's bytes, to be kept beside it.

        Returns:
            False when the condition does not hold: nothing was written.
        """
        if only_if is not None:
            self.require_conditions()
        return self._put(key, data, only_if, sha256)

    def _put(self, key: str, data: bytes, only_if: str | None, sha256: str | None = None) -> bool:
        writing = uuid.uuid4().hex
        metadata = {"writing": writing} | ({} if sha256 is None else {"sha256": sha256})
        options = dict(condition(only_if), ContentMD5=md5_of(data), Metadata=metadata)
        with self._errors(f"writing {key}"):
            try:
                refused = decided(lambda: self.client.put_object(Bucket=self.name, Key=key, Body=data, **options))
            except Exception as error:
                if only_if is None or not may_be_done(error):
                    raise
                return self._was_done(key, writing, error)
            if refused is None:
                return True
            # Of a request that was repeated the first may have been obeyed, and its answer lost.
            return refused.repeated and self._metadata(key).get("writing") == writing

    def _was_done(self, key: str, writing: str, error: Exception) -> bool:
        """A conditional request without an answer: True when it was obeyed; raises `StorageError` else."""
        with suppress(ServiceError), self._errors(f"looking at {key}"):
            if self._metadata(key).get("writing") == writing:
                return True
        raise StorageError(
            f"writing {key} in bucket {self.name} had no answer ({type(error).__name__}): it may have taken place; "
            "read it, then decide"
        ) from error

    def _metadata(self, key: str) -> Mapping[str, str]:
        try:
            return dict(self.client.head_object(Bucket=self.name, Key=key).get("Metadata", {}))
        except self.client.exceptions.ClientError as error:
            if code_of(error) in MISSING:
                return {}
            raise

    def delete(self, key: str) -> None:
        """Take an object away; one that is not there is no error."""
        with self._errors(f"removing {key}"):
            self.client.delete_object(Bucket=self.name, Key=key)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and bytes of all objects whose names begin with `prefix`, in order, however many there are."""
        return ((key, size) for key, size, _ in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """The same with the Unix time of their writing, by the store's clock."""
        for page in self._pages(prefix, ""):
            for one in page.get("Contents", ()):
                yield str(one["Key"]), int(one["Size"]), one["LastModified"].timestamp()

    def children(self, prefix: str) -> tuple[list[str], list[str]]:
        """Names right below `prefix`, which ends in a slash or is empty: of objects, and of folders."""
        files, folders = list[str](), list[str]()
        for page in self._pages(prefix, "/"):
            files += [str(one["Key"])[len(prefix) :] for one in page.get("Contents", ())]
            folders += [str(one["Prefix"])[len(prefix) : -1] for one in page.get("CommonPrefixes", ())]
        return files, folders

    def has_any(self, prefix: str) -> bool:
        """Whether an object's name begins with `prefix`."""
        with self._errors(f"listing {prefix or 'the bucket'}"):
            found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1)
        return bool(found.get("Contents"))

    def _pages(self, prefix: str, delimiter: str) -> Iterator[Mapping[str, Any]]:
        token: dict[str, str] = {}
        while True:
            with self._errors(f"listing {prefix or 'the bucket'}"):
                page = self.client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, Delimiter=delimiter, MaxKeys=PAGE_KEYS, **token
                )
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def require_conditions(self) -> None:
        """Make sure, once, that the store obeys conditions: one that does not would lose updates silently.

        Raises:
            StorageError: it does not.
        """
        if self._obeys:
            return
        self._obeys = self._probe()
        if not self._obeys:
            raise StorageError(
                f"the object store of bucket {self.name} does not obey conditional writes (If-None-Match, If-Match), "
                "without which two writers would overwrite each other; use a store that has them, or a file system"
            )

    def _probe(self) -> bool:
        try:
            self._put(self._probe_key, b"", ABSENT)  # now it is there, whoever wrote it
            return not self._put(self._probe_key, b"", ABSENT) and not self._put(self._probe_key, b"", _NOBODYS_TAG)
        except StorageError as error:
            if refused_as(error) in _UNKNOWN_CONDITION:
                return False
            raise

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        self.client  # noqa: B018 - says that botocore is missing, before anything else of it is imported
        try:
            with s3_errors(self.name, doing):
                yield
        except NoCredentials:
            self._client = None  # it would never look for them again
            raise


def connect(bucket: str) -> Any:
    """A connection to the store that the environment names; `bucket` is for messages.

    Raises:
        InvalidRequest: botocore is not installed, or the endpoint is no address, or has credentials in it.
        StorageError: the settings can not be used.
    """
    try:
        from botocore.config import Config  # noqa: PLC0415 - an extra, and a quarter of a second to import
        from botocore.session import Session  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest("s3:// needs botocore; install acemath-registry[s3]", param="root") from error
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, user_agent_extra="acemath-registry",
        # Content-MD5 and our own sha256 do it, on stores too that do not know the newer trailing checksums.
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    with s3_errors(bucket, "connecting"):
        try:
            client = Session().create_client("s3", config=config)
        except ValueError as error:  # as it says it, the address may have a password in it
            raise InvalidRequest(_NO_ENDPOINT) from error
    _check_endpoint(urlsplit(client.meta.endpoint_url))
    return client


def _check_endpoint(endpoint: SplitResult) -> None:
    """Refuse an address, wherever it was found, that cannot be one, or that no message may show."""
    if endpoint.scheme not in {"http", "https"}:
        raise InvalidRequest(_NO_ENDPOINT)
    if "@" in endpoint.netloc:
        raise InvalidRequest(
            "AWS_ENDPOINT_URL has a user or a password in it, which messages would show; give them as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def condition(only_if: str | None) -> dict[str, str]:
    """The parameter of a conditional write."""
    if only_if is None:
        return {}
    return {"IfNoneMatch": ABSENT} if only_if == ABSENT else {"IfMatch": only_if}


def md5_of(data: bytes) -> str:
    """As the header `Content-MD5` has it: the store refuses what arrives otherwise."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def parts_of(size: int, part_bytes: int, most: int) -> Sequence[tuple[int, int]]:
    """Offset and length of the parts of `size` bytes: each `part_bytes`, or more so that there are at most `most`."""
    length = max(part_bytes, -(-size // most))
    return [(offset, min(length, size - offset)) for offset in range(0, size, length)]
