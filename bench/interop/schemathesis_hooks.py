"""What holds between the fields of a request and what no JSON Schema can say: made true of cases meant to be valid.

schemathesis loads this file (`hooks` in its configuration). Without it "valid" bodies are generated that the document
refuses in words: a chat that does not end in a user's turn, more choices than candidates. Each rule is named here, and
tested by name in `tests/gateway`; everything else is checked as the document has it.
"""

from __future__ import annotations

from typing import Any

import schemathesis  # type: ignore[import-not-found]  # in an environment of its own

BEST_OF = 8
DEADLINE_SECONDS = 20
TURN = {"role": "user", "content": "What is 3 * 8?"}


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Change a case that is meant to be valid so that it is; others are sent as they are."""
    if case.meta is None or case.meta.generation.mode.value != "positive" or not isinstance(case.body, dict):
        return
    body = case.body
    _leaves_time(body)
    _leaves_time(body.get("acemath") or {})
    if case.path == "/v1/chat/completions":
        _last_turn_is_a_problem(body)
        _choices_are_of_the_candidates(body)
        _says_the_longest_answer_once(body)
        _stream_options_are_of_a_stream(body)
    if body.get("stream"):  # an answer that is read as it comes cannot be kept for a second one
        _drop(case.headers, "idempotency-key")


def _leaves_time(options: dict[str, Any]) -> None:
    """A deadline at which nothing can be there is answered with 504, as asked for: no fault of the server."""
    if 0 < (options.get("deadline_seconds") or 0) < DEADLINE_SECONDS:
        options["deadline_seconds"] = DEADLINE_SECONDS


def _last_turn_is_a_problem(body: dict[str, Any]) -> None:
    """The last turn is a user's and not blank."""
    body["messages"] = [*body["messages"][:255], TURN]


def _choices_are_of_the_candidates(body: dict[str, Any]) -> None:
    """`n` is at most `best_of`, which is 8 when left out."""
    most = body.get("best_of") or BEST_OF
    if (body.get("n") or 1) > most:
        body["n"] = most


def _says_the_longest_answer_once(body: dict[str, Any]) -> None:
    """`max_tokens` and `max_completion_tokens` are the same where both are given."""
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        body["max_tokens"] = body["max_completion_tokens"]


def _stream_options_are_of_a_stream(body: dict[str, Any]) -> None:
    """`stream_options` only with `stream`."""
    if not body.get("stream"):
        body.pop("stream_options", None)


def _drop(headers: Any, name: str) -> None:
    for given in [given for given in headers or () if given.lower() == name]:
        del headers[given]
