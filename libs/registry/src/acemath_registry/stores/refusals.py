"""What the S3 API's refusals mean, and what to do about them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from acemath_registry.errors import NotFound, StorageError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_UNDECIDED: Final = frozenset({"ConditionalRequestConflict", "409"})
_OVERTAKEN: Final = frozenset({"PreconditionFailed", "412"}) | _UNDECIDED
_DENIED: Final = frozenset(
    {
        "AccessDenied", "403", "401", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
        "InvalidToken", "AccountProblem", "AllAccessDisabled",
    }
)  # fmt: skip
_UNDECIDED_TRIES: Final = 5
_UNDECIDED_PAUSE_S: Final = 0.1
_BROKEN: Final = 500
_NOT_IMPLEMENTED: Final = 501
_CREDENTIALS: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"


class NoCredentials(StorageError):
    """None were found where AWS tools look for them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A condition did not hold.

    Attributes:
        repeated: the request was sent more than once.
        undecided: another request on the object was under way: the same one may be obeyed in a moment.
    """

    repeated: bool
    undecided: bool


def refusal_of(request: Callable[[], object]) -> Refusal | None:
    """Make a conditional request; None when its condition held."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - see `connect`

    try:
        request()
    except ClientError as error:
        if code_of(error) not in _OVERTAKEN | MISSING:  # If-Match where nothing is: missing
            raise
        repeated = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        return Refusal(repeated, undecided=code_of(error) in _UNDECIDED)
    return None


def decided(request: Callable[[], object]) -> Refusal | None:
    """As `refusal_of`; made again for a moment while the store does not decide, since another request is under way."""
    for left in reversed(range(_UNDECIDED_TRIES)):
        refused = refusal_of(request)
        if refused is None or not refused.undecided or not left:
            return refused
        threading.Event().wait(_UNDECIDED_PAUSE_S)
    raise AssertionError("unreachable")


def may_be_done(error: Exception) -> bool:
    """Whether the store may have obeyed a request that ended so: it was sent, and nobody heard what became of it."""
    from botocore import exceptions as aws  # noqa: PLC0415 - see `connect`
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - botocore's own transport

    if isinstance(error, aws.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= _BROKEN and status != _NOT_IMPLEMENTED
    return isinstance(error, aws.HTTPClientError | HTTPError)


@contextmanager
def s3_errors(bucket: str, doing: str) -> Iterator[None]:
    """Say what the store's refusal means and what to do.

    Raises:
        FileNotFoundError: no such object.
        NotFound: no such bucket.
        StorageError: everything else; a refused permission has a `PermissionError` as its cause.
    """
    from botocore import exceptions as aws  # noqa: PLC0415 - see `connect`
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - botocore's own transport

    try:
        yield
    except aws.ClientError as error:
        raise _refused(error, bucket, doing) from _cause(error)
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
        raise NoCredentials(f"{doing} in bucket {bucket}: no AWS credentials were found; {_CREDENTIALS}") from error
    except (aws.BotoCoreError, HTTPError) as error:
        raise StorageError(
            f"{doing} in bucket {bucket} failed: {type(error).__name__}: {error}; check AWS_ENDPOINT_URL, AWS_REGION, "
            "AWS_PROFILE and the network, then try again"
        ) from error


def _refused(error: ClientError, bucket: str, doing: str) -> Exception:
    code = code_of(error)
    if code in MISSING:
        return FileNotFoundError(errno.ENOENT, "is not in the bucket", doing)
    if code == "NoSuchBucket":
        return NotFound(f"there is no bucket {bucket}; correct the address (and AWS_ENDPOINT_URL), or create it")
    if code in _DENIED:
        return StorageError(
            f"{doing} in bucket {bucket} is denied ({code}); {_CREDENTIALS} that allows it: the operations guide "
            "lists the permissions"
        )
    return StorageError(f"{doing} in bucket {bucket} failed: {code}; try again later")


def _cause(error: ClientError) -> Exception:
    """What callers ask for who want to know whether it was a permission."""
    return PermissionError(errno.EACCES, code_of(error)) if code_of(error) in _DENIED else error


def code_of(error: ClientError) -> str:
    """The store's name of an error."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def refused_as(error: Exception) -> str | None:
    """The store's name of the error that `error` was raised for; None when it was not the store's."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - see `connect`

    return code_of(error.__cause__) if isinstance(error.__cause__, ClientError) else None
