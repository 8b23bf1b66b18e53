from __future__ import annotations

import inspect

import pytest

import acemath_core.errors as errors
from acemath_core.errors import ErrorCode, ServiceError, status_of, type_of


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status_and_a_type(code: ErrorCode) -> None:
    assert 400 <= status_of(code) <= 504
    assert type_of(code)


def test_every_error_class_stands_in_the_drawn_tree() -> None:
    classes = [
        c
        for _, c in inspect.getmembers(errors, inspect.isclass)
        if issubclass(c, ServiceError) and c is not ServiceError
    ]
    missing = [c.__name__ for c in classes if f"+ {c.__name__} " not in (errors.__doc__ or "")]
    assert missing == []


def test_quota_is_429_and_our_own_load_is_503() -> None:
    assert errors.QuotaExceeded("slow down").status == 429
    assert errors.Unavailable("full").status == 503


def test_a_code_given_at_the_raise_wins_over_the_class() -> None:
    error = errors.Unavailable("no reward", code=ErrorCode.REWARD_UNAVAILABLE, retry_after=2)
    assert (error.code, error.status, error.retry_after) == (ErrorCode.REWARD_UNAVAILABLE, 503, 2)
