"""Why a program ended, out of the end of what it printed."""

from __future__ import annotations

import pytest

from acemath_core.processes.words import last_words

PYDANTIC = [
    "(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
    "(APIServer pid=7)   Value error, User-specified max_model_len (2048) is greater than the derived max_model_len",
    "(APIServer pid=7)     For further information visit https://errors.pydantic.dev/2.14/v/value_error",
]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "no output"),
        (["loading", "killed"], "killed"),
        (["Traceback …", "ValueError: no such file", "shutting down"], "ValueError: no such file"),
        (["RuntimeError: first", "ValueError: second"], "ValueError: second"),
        (["x" * 500], "x" * 300),
    ],
)
def test_the_last_error_or_the_last_line(lines: list[str], expected: str) -> None:
    assert last_words(lines) == expected


def test_an_error_that_explains_itself_in_its_next_line_is_given_with_it() -> None:
    assert last_words(["starting", *PYDANTIC]) == (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig: "
        "Value error, User-specified max_model_len (2048) is greater than the derived max_model_len"
    )


def test_of_a_long_error_the_beginning_is_kept_and_of_a_long_explanation_too() -> None:
    found = last_words(["ValueError: " + "a" * 400, "  " + "b" * 400])
    assert found == "ValueError: " + "a" * 288 + ": " + "b" * 300
