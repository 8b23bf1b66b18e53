"""`early_reject` over HTTP: what is said of those that were stopped, and where it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway.test_early_reject import WORTHS, worth

from acemath_core.errors import InvalidRequest
from acemath_gateway.jobqueue.intake import Intake
from acemath_gateway.solve_wire import Limits
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import ScriptedPolicy, ScriptedScorer

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SETTINGS = {"early_reject_after_tokens": 4, "early_reject_keep": 0.25}


def gateway(**settings: Any) -> GatewayOnDoubles:
    policy, scorer = ScriptedPolicy(WORTHS, token_seconds=0.003), ScriptedScorer(worth)
    return GatewayOnDoubles(policy=policy, scorer=scorer, settings=SETTINGS | settings)


async def test_solve_says_how_many_were_stopped_and_a_stream_says_which() -> None:
    body = {"problem": PROBLEM, "n": 8, "early_reject": True, "candidates": "full"}
    async with gateway_client(gateway()) as http:
        whole = (await http.post("/v1/solve", json=body | {"seed": 0})).json()
        stream = (await http.post("/v1/solve", json=body | {"seed": 0, "stream": True})).text
    assert (whole["n_requested"], whole["n_generated"], whole["n_rejected"], whole["answer"]) == (8, 2, 6, "7")
    assert [one["index"] for one in whole["candidates"]] == [6, 7]
    events = [event.split("\ndata: ") for event in stream.strip().split("\n\n")]
    stopped = [json.loads(data) for name, data in events if name == "event: candidate.rejected"]
    assert [(one["index"], one["partial_score"]) for one in stopped] == [(i, float(i)) for i in range(6)]


async def test_a_chat_gets_its_choices_and_is_told() -> None:
    chat = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "best_of": 8, "n": 3, "seed": 0}
    async with gateway_client(gateway()) as http:
        body = (await http.post("/v1/chat/completions", json=chat | {"acemath": {"early_reject": True}})).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == WORTHS[:4:-1]
    assert (body["acemath"]["n_generated"], body["acemath"]["n_rejected"]) == (3, 5)
    assert body["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] >= 5 * 4


NEVER = [
    ({"selection": "majority"}, {"selection": "majority"}, {}),
    ({"n": 1}, {}, {"best_of": 1}),
    ({"temperature": 0}, {}, {"temperature": 0}),
    ({"max_tokens": 4}, {}, {"max_completion_tokens": 4}),
    ({"n": 9}, {}, {"best_of": 9}),
    ({"n": 16, "adaptive": True}, {"adaptive": True}, {"best_of": 16}),
    ({"n": 1}, {"adaptive": True}, {"best_of": 5, "n": 4}),
]
MOST = {"early_reject_keep": 0.9}  # so that all of nine are kept


@pytest.mark.parametrize(("solve", "options", "chat"), NEVER)
async def test_where_nobody_could_be_stopped_it_is_refused(
    solve: dict[str, Any], options: dict[str, Any], chat: dict[str, Any]
) -> None:
    talk = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}]}
    async with gateway_client(gateway(**MOST)) as http:
        replies = [
            await http.post("/v1/solve", json={"problem": PROBLEM, "early_reject": True} | solve),
            await http.post("/v1/chat/completions", json=talk | chat | {"acemath": {"early_reject": True} | options}),
        ]
        choices = {"n": 16, "best_of": 16, "acemath": {"early_reject": True}}
        replies.append(await http.post("/v1/chat/completions", json=talk | choices))
    assert [reply.status_code for reply in replies] == [400] * 3
    params = [reply.json()["error"]["param"] for reply in replies]
    assert params == ["early_reject", "acemath.early_reject", "acemath.early_reject"]


async def test_a_line_of_a_job_may_ask_for_it_and_is_refused_by_name() -> None:
    limits = Limits(max_problem_chars=100, default_deadline_seconds=10, max_deadline_seconds=20)
    intake = Intake(limits, max_lines=9, max_sequences=64)
    good = json.dumps({"problem": "3 * 8?", "early_reject": True}).encode()
    assert await intake.file(good) == [good.replace(b": ", b":").replace(b", ", b",")]
    with pytest.raises(InvalidRequest) as caught:
        await intake.file(good + b"\n" + good.replace(b"}", b', "selection": "majority"}'))
    assert caught.value.param == "2.early_reject"


async def test_a_gateway_that_scores_whole_candidates_only_says_so() -> None:
    async with gateway_client(gateway(live_scoring=False)) as http:
        reply = await http.post("/v1/solve", json={"problem": PROBLEM, "early_reject": True})
        schema = (await http.get("/openapi.json")).json()["paths"]["/v1/solve"]["post"]["requestBody"]
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "early_reject")
    assert "LIVE_SCORING" in reply.json()["error"]["message"]
    assert schema["content"]["application/json"]["schema"]["properties"]["early_reject"]["enum"] == [False]
