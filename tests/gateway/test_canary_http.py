"""What a client, an operator and Prometheus see of a release that gets a share."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from gateway.test_http_solve import SOLVE
from prometheus_client.parser import text_string_to_metric_families

from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.canary import CanaryState, CanaryView
from acemath_gateway.ports import ReleaseRole
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, gateway_client
from doubles.ports import TARGET

OTHER = replace(TARGET, release="r-000000000002", role=ReleaseRole.CANARY)
VIEW = CanaryView(OTHER.release, "pol@s2", "rew@s2", 0.05, CanaryState.COMING, "http://p has pol@s2 in state staging")
CHAT = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "seed": 0}


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles(canary=VIEW)


async def test_it_is_shown_beside_what_is_served(gateway: GatewayOnDoubles) -> None:
    async with gateway_client(gateway) as http:
        served, shared = (await http.get("/v1/releases")).json()["data"]
        gateway.canary = None
        assert (await http.get("/v1/releases")).json()["data"] == [served]
    assert served["id"] == TARGET.release and "canary" not in served
    assert shared == {
        "object": "release",
        "id": OTHER.release,
        "models": {"policy": "pol@s2", "reward": "rew@s2"},
        "canary": {"share": 0.05, "state": "coming", "reason": VIEW.reason},
    }


@pytest.mark.parametrize(("path", "body"), [("/v1/solve", SOLVE), ("/v1/chat/completions", CHAT)])
async def test_an_idempotency_key_says_who_answers_and_else_one_of_ours_for_each_attempt(
    gateway: GatewayOnDoubles, path: str, body: dict[str, object]
) -> None:
    async with gateway_client(gateway) as http:
        await http.post(path, json=body, headers={"idempotency-key": "k1", "x-request-id": "one"})
        for _ in range(2):
            await http.post(path, json=body, headers={"x-request-id": "two"})
    key, *ours = gateway.release.keys
    assert key == "k1" and len({*ours, "two"}) == 3, "a request id that a proxy repeats is no share of its own"


async def test_an_answer_names_the_release_that_gave_it_and_a_stream_only_at_its_end(gateway: GatewayOnDoubles) -> None:
    gateway.release.target = OTHER
    async with gateway_client(gateway) as http:
        whole = await http.post("/v1/solve", json=SOLVE)
        stream = await http.post("/v1/solve", json=SOLVE | {"stream": True})
    assert whole.json()["release"] == whole.headers["x-acemath-release"] == OTHER.release
    assert "x-acemath-release" not in stream.headers and OTHER.release in stream.text


async def test_the_same_figures_of_both_under_two_labels(gateway: GatewayOnDoubles) -> None:
    async with gateway_client(gateway) as http:
        await http.post("/v1/solve", json=SOLVE)
        gateway.release.target = OTHER
        await http.post("/v1/solve", json=SOLVE)
        gateway.policy.error = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE)
        await http.post("/v1/solve", json=SOLVE)
        text = (await http.get("/metrics")).text
    found = {
        (sample.name.removeprefix("acemath_gateway_release_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for release, failed in (("current", 0), ("canary", 1)):
        assert found["requests_total", *sorted(("ok", release))] == 1
        assert found["requests_total", *sorted(("failed", release))] == failed
        assert found["request_duration_seconds_count", release] == found["score_margin_count", release] == 1
        assert found["score_count", release] == SOLVE["n"] and found["agreement_count", release] == 1
    assert found["agreement_sum", "canary"] == found["agreement_sum", "current"]
    releases = {sample[-1] for sample in found if sample[0] == "score_count"}
    assert releases == {"current", "canary", "old"}, "never an id"
    assert found["requests_total", *sorted(("ok", "old"))] == found["score_count", "old"] == 0


async def test_what_a_job_was_before_its_canary_ended_is_charged_to_nobody(gateway: GatewayOnDoubles) -> None:
    gateway.release.target = OTHER
    gateway.policy.gate = asyncio.Event()
    async with gateway_client(gateway) as http:
        asked = asyncio.create_task(http.post("/v1/solve", json=SOLVE))
        await eventually(lambda: gateway.policy.running)
        gateway.release.target = replace(OTHER, release="r-000000000003")  # the next canary
        gateway.policy.gate.set()
        assert (await asked).json()["release"] == OTHER.release
        text = (await http.get("/metrics")).text
    counted = {
        sample.labels["release"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in ("acemath_gateway_release_requests_total", "acemath_gateway_release_score_count")
        and sample.labels.get("outcome", "ok") == "ok"
        and sample.value
    }
    assert set(counted) == {"old"}
