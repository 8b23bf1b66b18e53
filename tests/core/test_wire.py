from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

import acemath_core.wire as wire
from acemath_core.prompts import (
    POLICY_SYSTEM,
    REWARD_SYSTEM,
    policy_conversation,
    policy_messages,
    reward_context,
    reward_messages,
)
from acemath_web.errors import from_validation


@pytest.mark.parametrize(
    "change",
    [
        *({"n": n} for n in (0, 65, 10**9, 2.5)),
        *({"temperature": value} for value in (float("nan"), -0.1, 2.1)),
        *({"seed": seed} for seed in (-1, 2**31)),
        *({"deadline_seconds": seconds} for seconds in (0, float("inf"))),
        *({"problem": text} for text in ("", "\ud800")),
        *({"top_p": 0}, {"max_tokens": 0}, {"unknown": 1}, {"adaptive": "maybe"}),
        *({"selection": "random"}, {"candidates": "some"}),
    ],
)
def test_a_solve_request_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wire.SolveRequest.model_validate({"problem": "1 + 1?", **change})


def test_every_body_is_frozen_and_refuses_unknown_fields() -> None:
    bodies = [c for _, c in inspect.getmembers(wire, inspect.isclass) if issubclass(c, wire.Wire)]
    assert len(bodies) > 10
    assert all(c.model_config.get("frozen") and c.model_config.get("extra") == "forbid" for c in bodies)


def test_a_score_request_takes_exactly_one_context() -> None:
    for body in (
        {"candidates": ["a"]},
        {"problem": "p", "messages": [{"role": "user", "content": "p"}], "candidates": ["a"]},
    ):
        with pytest.raises(ValidationError, match="exactly one of problem and messages"):
            wire.ScoreRequest.model_validate(body)


def test_the_policy_is_told_to_put_and_the_reward_model_to_check() -> None:
    assert "put your final answer within \\boxed{}" in POLICY_SYSTEM
    assert "check your final answer within \\boxed{}" in REWARD_SYSTEM
    assert [m["role"] for m in policy_messages("p")] == ["system", "user"]
    assert [m["role"] for m in reward_messages("p", "s")] == ["system", "user", "assistant"]


def test_a_callers_system_text_goes_to_the_policy_and_not_to_the_reward_model() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "p"}]
    assert policy_conversation(turns) == turns  # type: ignore[arg-type]
    assert [m["content"] for m in reward_context(turns)] == [REWARD_SYSTEM, "p"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidate", "where"),
    [
        ({"token_ids": [-1]}, "candidates.0.token_ids.0"),
        ({"token_ids": [True]}, "candidates.0.token_ids.0"),
        ({"token_ids": []}, "candidates.0.token_ids"),
        ({"ids": [1]}, "candidates.0.token_ids"),
        (5, "candidates.0"),
        ("\ud800", "candidates.0"),
    ],
)
def test_a_bad_candidate_is_named_by_its_own_form(candidate: object, where: str) -> None:
    with pytest.raises(ValidationError) as refused:
        wire.ScoreRequest.model_validate({"problem": "1 + 1?", "candidates": [candidate]})
    assert from_validation(refused.value.errors()).param == where


def test_stream_is_true_or_false_and_nothing_like_it() -> None:
    with pytest.raises(ValidationError):
        wire.ScoreRequest.model_validate({"problem": "1 + 1?", "candidates": ["2"], "stream": "yes"})
