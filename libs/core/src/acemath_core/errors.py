"""The errors that may cross a process boundary, and the one table that gives each its HTTP status.

    ServiceError
      + InvalidRequest      the caller's mistake; `param` names the field         400
      + Unauthenticated     no key, or an unknown one                              401
      + Forbidden           a known key without the scope                          403
      + NotFound            nothing under that name                                404
      + Conflict            contradicts what is stored or served                   409
      + TooLarge            a body over the limit; 431 of headers                  413
      + QuotaExceeded       only the caller's own quota                            429
      + ClientGone          nobody waits for the answer (log only)                 499
      + InternalError       a broken invariant of ours                             500
      + Unavailable         we are full, starting, or a part of us is away         503
      + DeadlineExceeded    the request's deadline passed with nothing to give     504

To add one: a member of `ErrorCode`, its line in `_STATUS`, and (for a new way of reacting) a subclass.
`tests/core/test_errors.py` fails while a code has no status.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The machine-readable reason, `error.code` in every error body."""

    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    MODEL_NOT_SERVED = "model_not_served"
    REQUEST_TOO_LARGE = "request_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    REGISTRY_READ_ONLY = "registry_read_only"
    GATE_REFUSED = "gate_refused"
    REQUESTS_QUOTA_EXCEEDED = "requests_quota_exceeded"
    TOKENS_QUOTA_EXCEEDED = "tokens_quota_exceeded"
    SEQUENCES_QUOTA_EXCEEDED = "sequences_quota_exceeded"
    CLIENT_GONE = "client_gone"
    INTERNAL = "internal_error"
    OVERLOADED = "overloaded"
    REWARD_OVERLOADED = "reward_overloaded"
    NOT_READY = "not_ready"
    DRAINING = "draining"
    POLICY_UNAVAILABLE = "policy_unavailable"
    REWARD_UNAVAILABLE = "reward_unavailable"
    IDEMPOTENCY_UNAVAILABLE = "idempotency_unavailable"
    KEYS_UNAVAILABLE = "keys_unavailable"
    JOBS_UNAVAILABLE = "jobs_unavailable"
    JOBS_FULL = "jobs_full"
    WORKER_LOST = "worker_lost"
    RESULTS_FULL = "results_full"
    NO_USABLE_CANDIDATE = "no_usable_candidate"
    DEADLINE_EXCEEDED = "deadline_exceeded"


_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNSUPPORTED_PARAMETER: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.INSUFFICIENT_SCOPE: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.IDEMPOTENCY_CONFLICT: 409,
    ErrorCode.MODEL_NOT_SERVED: 409,
    ErrorCode.REQUEST_TOO_LARGE: 413,
    ErrorCode.HEADERS_TOO_LARGE: 431,
    ErrorCode.REGISTRY_READ_ONLY: 409,
    ErrorCode.GATE_REFUSED: 409,
    ErrorCode.REQUESTS_QUOTA_EXCEEDED: 429,
    ErrorCode.TOKENS_QUOTA_EXCEEDED: 429,
    ErrorCode.SEQUENCES_QUOTA_EXCEEDED: 429,
    ErrorCode.CLIENT_GONE: 499,
    ErrorCode.INTERNAL: 500,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.REWARD_OVERLOADED: 503,
    ErrorCode.NOT_READY: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.POLICY_UNAVAILABLE: 503,
    ErrorCode.REWARD_UNAVAILABLE: 503,
    ErrorCode.IDEMPOTENCY_UNAVAILABLE: 503,
    ErrorCode.KEYS_UNAVAILABLE: 503,
    ErrorCode.JOBS_UNAVAILABLE: 503,
    ErrorCode.JOBS_FULL: 503,
    ErrorCode.WORKER_LOST: 503,
    ErrorCode.RESULTS_FULL: 413,
    ErrorCode.NO_USABLE_CANDIDATE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}

# The names that OpenAI's clients know; what they raise follows the status, what they print follows the type.
_TYPES: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def status_of(code: ErrorCode) -> int:
    """The HTTP status of an error code (`contracts`: 429 is only for a caller's quota, 503 for our overload)."""
    return _STATUS[code]


def type_of(code: ErrorCode) -> str:
    """The OpenAI-style `error.type` of an error code."""
    return _TYPES.get(status_of(code), "invalid_request_error")


class ServiceError(Exception):
    """An error with a code, a sentence for the caller, and what the caller should do next.

    Args:
        message: what was wrong, with what, and what to do; never a secret, a path or a user's text.
        param: the request field at fault, if one is.
        code: overrides the class's default code.
        retry_after: seconds until a retry makes sense (sent as `Retry-After` with 429 and 503).
        should_retry: sent as `x-should-retry` when set; clients obey it before their own rules.
    """

    default_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: ErrorCode | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after
        self.should_retry = should_retry

    @property
    def status(self) -> int:
        """The HTTP status of this error."""
        return status_of(self.code)


class InvalidRequest(ServiceError):
    """The caller's mistake; `param` names the field."""

    default_code = ErrorCode.INVALID_REQUEST


class Unauthenticated(ServiceError):
    """No key, or one that nobody issued."""

    default_code = ErrorCode.INVALID_API_KEY


class Forbidden(ServiceError):
    """A known key that lacks the scope."""

    default_code = ErrorCode.INSUFFICIENT_SCOPE


class NotFound(ServiceError):
    """Nothing under that name."""

    default_code = ErrorCode.NOT_FOUND


class Conflict(ServiceError):
    """Contradicts what is stored or served."""

    default_code = ErrorCode.CONFLICT


class TooLarge(ServiceError):
    """A body over the limit."""

    default_code = ErrorCode.REQUEST_TOO_LARGE


class QuotaExceeded(ServiceError):
    """The caller's own quota, never our load."""

    default_code = ErrorCode.REQUESTS_QUOTA_EXCEEDED


class ClientGone(ServiceError):
    """The caller closed the connection; the answer goes to nobody."""

    default_code = ErrorCode.CLIENT_GONE


class InternalError(ServiceError):
    """A broken invariant: a bug of ours, never the caller's fault."""

    default_code = ErrorCode.INTERNAL


class Unavailable(ServiceError):
    """We are full, starting, draining, or a part of us is away; the same request may succeed later."""

    default_code = ErrorCode.OVERLOADED


class DeadlineExceeded(ServiceError):
    """The request's deadline passed and there is nothing to give."""

    default_code = ErrorCode.DEADLINE_EXCEEDED
