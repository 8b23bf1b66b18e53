"""What holds between the fields of a request and what no JSON Schema can say: made true of cases meant to be valid.

schemathesis loads this file (`hooks` in its configuration). Without it "valid" bodies are generated that the document
refuses in words: a chat that does not end in a user's turn, more choices than candidates. Each rule is named here, and
tested by name in `tests/gateway` and `tests/reward`; everything else is checked as the document has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import schemathesis  # type: ignore[import-not-found]  # in an environment of its own

BEST_OF = 8
DEADLINE_SECONDS = 20
TURN = {"role": "user", "content": "What is 3 * 8?"}


OWN_KEY, RELEASE = os.environ.get("INTEROP_KEY_ID", ""), os.environ.get("INTEROP_RELEASE", "")
SHORT, FEW = 20, 4
"""Characters and elements with which a call fits into the 320 tokens of the model that is served."""
IDS = range(3, 300)
"""Some of that model's vocabulary, without its control tokens."""
Body = dict[str, Any]


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Change a case that is meant to be valid so that it is; others are sent as they are."""
    _keeps_the_key_of_this_run(case)
    if case.meta is None or case.meta.generation.mode.value != "positive":
        return
    _leaves_time_to_score(case)
    if not isinstance(case.body, dict):
        return
    body = case.body
    _leaves_time(body)
    _leaves_time(body.get("acemath") or {})
    for rule in RULES.get(case.path, ()):
        rule(body)
    if body.get("stream"):  # an answer that is read as it comes cannot be kept for a second one
        _drop(case.headers, "idempotency-key")


def _keeps_the_key_of_this_run(case: Any) -> None:
    """Its own key is the one that a run with a key of every scope may not revoke."""
    if case.method == "DELETE" and OWN_KEY and (case.path_parameters or {}).get("key_id") == OWN_KEY:
        case.path_parameters["key_id"] = "key-" + "0" * 16


def _leaves_time_to_score(case: Any) -> None:
    """The same of the header of the reward service; a number stays one."""
    for name, value in list((case.headers or {}).items()):
        if name.lower() == "x-acemath-deadline-ms" and _is_soon(value):
            case.headers[name] = str(DEADLINE_SECONDS * 1000)


def _is_soon(milliseconds: Any) -> bool:
    try:
        return 0 <= float(milliseconds) < DEADLINE_SECONDS * 1000
    except (TypeError, ValueError):
        return False


def _leaves_time(options: dict[str, Any]) -> None:
    """A deadline at which nothing can be there is answered with 504, as asked for: no fault of the server."""
    if 0 < (options.get("deadline_seconds") or 0) < DEADLINE_SECONDS:
        options["deadline_seconds"] = DEADLINE_SECONDS


def _last_turn_is_a_problem(body: Body) -> None:
    """The last turn is a user's and not blank."""
    body["messages"] = [*body["messages"][:255], TURN]


def _choices_are_of_the_candidates(body: Body) -> None:
    """`n` is at most `best_of`, which is 8 when left out."""
    most = body.get("best_of") or BEST_OF
    if (body.get("n") or 1) > most:
        body["n"] = most


def _says_the_longest_answer_once(body: Body) -> None:
    """`max_tokens` and `max_completion_tokens` are the same where both are given."""
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        body["max_tokens"] = body["max_completion_tokens"]


def _leaves_some_to_reject(body: Body) -> None:
    """`early_reject` wants more candidates than choices."""
    if (body.get("n") or 1) >= (body.get("best_of") or BEST_OF):
        (body.get("acemath") or {}).pop("early_reject", None)


def _is_of_the_registry(body: Body) -> None:
    """A release that is promoted is one that there is."""
    body["release"] = RELEASE


def _stream_options_are_of_a_stream(body: Body) -> None:
    """`stream_options` only with `stream`."""
    if not body.get("stream"):
        body.pop("stream_options", None)


# ------------------------------------------------------------------------------------------------- the reward service


def _fits(value: Any) -> Any:
    """Texts and lists short enough for the model, ids of its vocabulary."""
    if isinstance(value, str):
        return value[:SHORT]
    if isinstance(value, list):
        return [_fits(one) for one in value[:FEW]]
    if isinstance(value, dict):
        return {name: one if name == "role" else _fits(one) for name, one in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return IDS[int(value) % len(IDS)]
    return value


def _fits_the_model(body: Body) -> None:
    for name in body.keys() & {"problem", "messages", "candidates", "input", "query", "documents", *PAIRED, "prompts"}:
        body[name] = _fits(body[name])


def _last_scored_turn_is_a_users(body: Body) -> None:
    """Candidates answer the last turn, a user's."""
    if body.get("messages") is not None:
        body["messages"] = [*body["messages"][: FEW - 1], TURN]


def _says_the_activation_once(body: Body) -> None:
    """`activation` is `use_activation` where both are given."""
    if body.get("use_activation") is not None:
        body.pop("activation", None)


def _conversations_have_tokens(body: Body) -> None:
    """A rendered conversation is not empty."""
    if body.get("input") is not None:
        several = body["input"] if isinstance(body["input"], list) else [body["input"]]
        filled = [one if one != "" else "3 * 8" for one in several]
        body["input"] = filled if isinstance(body["input"], list) else filled[0]


PAIRED = ("text_1", "queries", "data_1", "text_2", "documents", "items", "data_2")
"""The fields of problems, then those of candidates."""


def _one_problem_or_one_for_each(body: Body) -> None:
    """Several problems are as many as there are candidates."""
    for name in PAIRED[:3]:
        if isinstance(body.get(name), list):
            body[name] = body[name][:1]


def _one_element_for_each_query(body: Body) -> None:
    """`prompts` and `labels` have an element for each query."""
    queries = [body["query"]] if isinstance(body["query"], str) else body["query"]
    for name, filling in (("prompts", ""), ("labels", None)):
        if body.get(name) is not None:
            body[name] = [*body[name], *[filling] * len(queries)][: len(queries)]


_CHAT = (
    _last_turn_is_a_problem,
    _choices_are_of_the_candidates,
    _leaves_some_to_reject,
    _says_the_longest_answer_once,
    _stream_options_are_of_a_stream,
)
_RERANK = (_fits_the_model, _says_the_activation_once)
RULES: dict[str, tuple[Callable[[Body], None], ...]] = {
    "/v1/chat/completions": _CHAT,
    "/admin/v1/releases/{channel}": (_is_of_the_registry,),
    "/v1/score": (_fits_the_model, _last_scored_turn_is_a_users),
    "/classify": (_fits_the_model, _says_the_activation_once, _conversations_have_tokens),
    "/score": (_fits_the_model, _says_the_activation_once, _one_problem_or_one_for_each),
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/get_reward": (_fits_the_model, _one_element_for_each_query),
}


def _drop(headers: Any, name: str) -> None:
    for given in [given for given in headers or () if given.lower() == name]:
        del headers[given]
