"""`POST /v1/solve` over a real socket: whole and streamed, refused, cancelled."""

import asyncio
import json

import httpx
import pytest

from acemath_core.errors import DeadlineExceeded, ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.routes import streams
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, eventually_true, gateway_client
from doubles.ports import POLICY, REWARD, TARGET

SOLVE = {"problem": PROBLEM, "n": 3, "seed": 0}


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles()


async def left(asking: asyncio.Task[httpx.Response]) -> None:
    """The client gives up and closes its connection."""
    asking.cancel()
    await asyncio.wait({asking})


async def shows(http: httpx.AsyncClient, line: str) -> bool:
    """Whether `/metrics` has this by now: what became of a request is counted when its last task has ended."""
    return line in (await http.get("/metrics")).text


def parsed(text: str) -> list[tuple[str, dict]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


async def test_a_solution_says_everything_the_contract_lists(gateway):
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"candidates": "full"}, headers={"x-request-id": "abc"})
    body = reply.json()
    assert reply.status_code == 200
    assert reply.headers["x-acemath-release"] == body["release"] == TARGET.release
    assert reply.headers["x-request-id"] == "abc"
    assert body["object"] == "solution" and body["id"].startswith("sol_")
    assert body["answer"] == "24" and body["models"] == {"policy": POLICY, "reward": REWARD}
    assert (body["n_requested"], body["n_generated"], body["n_scored"]) == (3, 3, 3)
    assert [c["index"] for c in body["candidates"]] == [0, 1, 2]
    assert body["stop_reason"] == "complete" and body["degraded"] is False
    usage = body["usage"]
    assert usage["completion_tokens"] == sum(c["completion_tokens"] for c in body["candidates"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    chosen = next(c for c in body["candidates"] if c["text"] == body["solution"])
    rejected = usage["completion_tokens_details"]["rejected_prediction_tokens"]
    assert rejected == usage["completion_tokens"] - chosen["completion_tokens"]


@pytest.mark.parametrize(("detail", "fields"), [("none", []), ("scores", [None, None, None])])
async def test_candidates_are_shown_as_far_as_asked(gateway, detail, fields):
    async with gateway_client(gateway) as http:
        body = (await http.post("/v1/solve", json=SOLVE | {"candidates": detail})).json()
    assert [c["text"] for c in body["candidates"]] == fields


async def test_temperature_zero_makes_one_candidate(gateway):
    async with gateway_client(gateway) as http:
        body = (await http.post("/v1/solve", json=SOLVE | {"temperature": 0})).json()
    assert (body["n_generated"], body["stop_reason"]) == (1, "greedy")


async def test_a_stream_names_its_events_and_ends_in_the_solution(gateway):
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-acemath-release"] == TARGET.release
    events = parsed(reply.text)
    names = [name for name, _ in events]
    assert sorted(names[:-1]) == ["candidate.finished"] * 3 + ["candidate.scored"] * 3
    assert names[-1] == "solution" and events[-1][1]["answer"] == "24"
    assert "text" not in events[0][1] or events[0][1]["text"] is None


async def test_a_quiet_stream_is_kept_alive(gateway, monkeypatch):
    monkeypatch.setattr(streams, "STATUS_GRACE_SECONDS", 0.05)
    gateway.policy.token_seconds = 0.1
    gateway.policy.script = ("so \\boxed{24}",)
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"stream": True})
    assert reply.text.startswith(": keep-alive\n\n")
    assert parsed(reply.text)[-1][0] == "solution"


async def test_what_fails_before_the_first_event_has_its_own_status_in_a_stream_too(gateway):
    gateway.policy.error = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE, retry_after=2)
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"stream": True})
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "policy_unavailable"
    assert reply.headers["retry-after"] == "2" and reply.headers["x-acemath-error-code"] == "policy_unavailable"


async def test_what_fails_later_is_an_error_event(gateway):
    gateway.scorer.error = Unavailable("gone", code=ErrorCode.REWARD_UNAVAILABLE)
    gateway.policy.token_seconds = 0.01
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"stream": True})
    name, body = parsed(reply.text)[-1]
    assert reply.status_code == 200 and name == "error" and body["error"]["code"] == "reward_unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_everything_behind_it(gateway, stream):
    gateway.policy.script = ("\\boxed{24}", "a b c d")
    gateway.policy.hang_after = 2
    gateway.scorer.seconds = 60
    async with gateway_client(gateway) as http:
        asking = asyncio.create_task(http.post("/v1/solve", json=SOLVE | {"stream": stream}))
        await eventually(lambda: gateway.policy.running == 3 and gateway.scorer.running == 2)
        await left(asking)
        await eventually(lambda: gateway.policy.running == 0 and gateway.scorer.running == 0)
        await eventually(lambda: gateway.limit.held == 0 and gateway.release.held == 0)
        await eventually_true(lambda: shows(http, "acemath_gateway_disconnects_total 1.0"))


async def test_a_client_that_leaves_with_its_solution_has_not_gone_early(gateway):
    gateway.limit.release_seconds = 0.2
    async with gateway_client(gateway) as http:
        async with http.stream("POST", "/v1/solve", json=SOLVE | {"stream": True}) as reply:
            async for line in reply.aiter_lines():
                if line == "event: solution":
                    break
        await eventually(lambda: gateway.limit.held == 0 and gateway.release.held == 0)
        await eventually_true(lambda: shows(http, 'method="POST",route="/v1/solve",status="200"'))
        metrics = (await http.get("/metrics")).text
    assert "acemath_gateway_disconnects_total 0.0" in metrics
    assert 'route="/v1/solve",status="499"' not in metrics


async def test_a_client_that_leaves_while_it_waits_for_a_place_leaves_the_queue(gateway):
    gateway.limit.places = 3
    gateway.policy.gate = asyncio.Event()
    async with gateway_client(gateway) as http:

        async def queued(count: int) -> bool:
            return f"acemath_gateway_queued_requests {count}.0" in (await http.get("/metrics")).text

        first = asyncio.create_task(http.post("/v1/solve", json=SOLVE))
        await eventually(lambda: gateway.limit.held == 3)
        asking = asyncio.create_task(http.post("/v1/solve", json=SOLVE))
        await eventually_true(lambda: queued(1))
        await left(asking)
        await eventually_true(lambda: queued(0))
        gateway.policy.gate.set()
        assert (await first).status_code == 200
    assert len(gateway.policy.calls) == 1


async def test_a_full_gateway_says_so_and_when_to_come_back():
    gateway = GatewayOnDoubles(settings={"max_queue_seconds": 0.5, "max_queued_requests": 1})
    gateway.limit.places = 3
    gateway.policy.gate = asyncio.Event()
    async with gateway_client(gateway) as http:
        asking = [asyncio.create_task(http.post("/v1/solve", json=SOLVE)) for _ in range(4)]
        await eventually(lambda: sum(task.done() for task in asking) == 3)
        gateway.policy.gate.set()
        replies = await asyncio.gather(*asking)
    by_status = sorted(reply.status_code for reply in replies)
    assert by_status == [200, 503, 503, 503]
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.json()["error"]["code"] == "overloaded" and int(refused.headers["retry-after"]) >= 1
    assert gateway.limit.most_held == 3


async def test_a_waiting_request_gets_the_place_that_comes_free(gateway):
    gateway.limit.places = 3
    gateway.policy.token_seconds = 0.02
    async with gateway_client(gateway) as http:
        replies = await asyncio.gather(*(http.post("/v1/solve", json=SOLVE) for _ in range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4
    assert gateway.limit.most_held == 3
    assert max(reply.json()["timings"]["queue_seconds"] for reply in replies) > 0.05


async def test_a_burst_that_fits_is_admitted_at_once_without_a_queue():
    gateway = GatewayOnDoubles(settings={"max_queued_requests": 0})
    gateway.limit.places = 90
    gateway.policy.token_seconds = 0.05
    async with gateway_client(gateway) as http:
        replies = await asyncio.gather(*(http.post("/v1/solve", json=SOLVE) for _ in range(30)))
    assert {reply.status_code for reply in replies} == {200}


async def test_more_candidates_than_there_are_places_is_the_callers_mistake():
    gateway = GatewayOnDoubles(settings={"max_sequences_in_flight": 8})
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"n": 9})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "n"


async def test_the_deadline_is_bounded(gateway):
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"deadline_seconds": 3000})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "deadline_seconds"


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE, retry_after=2), 503, {"retry-after": "2"}),
        (DeadlineExceeded("late", should_retry=False), 504, {"x-should-retry": "false"}),
    ],
)
async def test_what_a_client_should_do_next_is_said(gateway, error, status, headers):
    gateway.policy.error = error
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE)
    assert reply.status_code == status and headers.items() <= dict(reply.headers).items()


async def test_too_long_for_the_reward_model_is_a_400_that_names_the_problem(gateway):
    gateway.scorer.unscorable = "boxed"
    gateway.scorer.refusal = InvalidRequest("too long", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "problem")


# -------------------------------------------------------------------------------------------------------- cut off


@pytest.mark.parametrize(
    ("script", "max_tokens", "answer", "reason"),
    [
        ("2 + 2 = 4. \\boxed{4}", 3, "2", "truncated"),
        ("So it is \\boxed{2 4}", 4, None, "truncated"),
        ("The final answer is \\bo", 100, None, None),
        ("2 + 2 = 4. \\boxed{4}", 100, "4", None),
    ],
)
async def test_a_solution_that_was_cut_off_says_so(gateway, script, max_tokens, answer, reason):
    gateway.policy.script = (script,)
    async with gateway_client(gateway) as http:
        body = {"problem": "What is 2+2?", "n": 1, "max_tokens": max_tokens}
        done = (await http.post("/v1/solve", json=body)).json()
    assert (done["answer"], done["degraded_reason"], done["degraded"]) == (answer, reason, reason is not None)
