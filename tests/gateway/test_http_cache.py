"""Answers that are given again, over a real socket."""

from __future__ import annotations

import dataclasses

import pytest
from gateway.test_http_solve import SOLVE

from acemath_core.errors import ErrorCode, Unavailable
from acemath_gateway.routes import cached
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import TARGET

UNSEEDED = {key: value for key, value in SOLVE.items() if key != "seed"}
CHAT = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "best_of": 3}
ADMIN = "acemath_" + "a" * 40
PATIENT = {"answer_cache_seconds": 60, "redis_timeout_seconds": 5.0}
ROUTES = pytest.mark.parametrize(("path", "body"), [("/v1/solve", UNSEEDED), ("/v1/chat/completions", CHAT)])


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A stalled machine is no stalled store."""
    monkeypatch.setattr(cached, "_STORE_SECONDS", 10.0)


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles(settings={"answer_cache_seconds": 60})


def results(text: str) -> dict[str, float]:
    """What was found, as the metric counts it."""
    lines = [line for line in text.splitlines() if line.startswith("acemath_gateway_answer_cache_total{")]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines if not line.endswith(" 0.0")}


@ROUTES
async def test_the_same_request_gets_the_same_answer_for_nothing(gateway, path, body):
    async with gateway_client(gateway) as http:
        first, again = [await http.post(path, json=body) for _ in range(2)]
        counted = results((await http.get("/metrics")).text)
    assert first.status_code == 200 and first.content == again.content and len(gateway.policy.calls) == 1
    assert (first.headers["x-acemath-cache"], again.headers["x-acemath-cache"]) == ("miss", "hit")
    assert int(again.headers["age"]) >= 0 and "age" not in first.headers
    assert again.headers["x-acemath-release"] == TARGET.release
    assert counted == {"hit": 1, "miss": 1}


@ROUTES
async def test_it_is_off_by_default(path, body):
    gateway = GatewayOnDoubles()
    async with gateway_client(gateway) as http:
        replies = [await http.post(path, json=body) for _ in range(2)]
    assert len(gateway.policy.calls) == 2 and not gateway.answers.kept
    assert not any("x-acemath-cache" in reply.headers for reply in replies)


@pytest.mark.parametrize("change", [{"n": 2}, {"seed": 5}, {"problem": PROBLEM + " "}, {"selection": "majority"}])
async def test_another_request_is_worked_on(gateway, change):
    async with gateway_client(gateway) as http:
        await http.post("/v1/solve", json=UNSEEDED)
        assert (await http.post("/v1/solve", json=UNSEEDED | change)).headers["x-acemath-cache"] == "miss"


async def test_the_two_routes_share_nothing_and_streams_are_left_alone(gateway):
    async with gateway_client(gateway) as http:
        for path, body in (("/v1/solve", UNSEEDED), ("/v1/chat/completions", CHAT)):
            await http.post(path, json=body)
            streamed = await http.post(path, json=body | {"stream": True})
            assert "x-acemath-cache" not in streamed.headers
    assert len(gateway.policy.calls) == 4


async def test_an_answer_is_its_callers_alone(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    keys.chmod(0o600)
    gateway = GatewayOnDoubles(settings={"api_keys_file": keys, "answer_cache_seconds": 60})
    async with gateway_client(gateway) as http:
        for key, expected in (("one", "miss"), ("two", "miss"), ("one", "hit")):
            reply = await http.post("/v1/solve", json=UNSEEDED, headers={"authorization": f"Bearer {key}"})
            assert reply.headers["x-acemath-cache"] == expected
        refused = await http.post("/v1/solve", json=UNSEEDED, headers={"authorization": "Bearer three"})
    assert refused.status_code == 401


async def test_another_release_begins_with_none(gateway):
    async with gateway_client(gateway) as http:
        await http.post("/v1/solve", json=UNSEEDED)
        gateway.release.target = dataclasses.replace(TARGET, release="r-bbbbbbbbbbbb", generation=9)
        fresh = await http.post("/v1/solve", json=UNSEEDED)
        assert (fresh.headers["x-acemath-cache"], fresh.json()["release"]) == ("miss", "r-bbbbbbbbbbbb")
        gateway.release.target = TARGET  # rolled back
        assert (await http.post("/v1/solve", json=UNSEEDED)).headers["x-acemath-cache"] == "hit"


@pytest.mark.parametrize(
    ("said", "expected", "kept"),
    [
        ("no-cache", "miss", 1),
        ("No-Cache, max-age=100", "miss", 1),
        ("max-age=0", "miss", 1),
        ("max-age=abc", "miss", 1),
        ("max-age=1000", "hit", 1),
        ("no-store", None, 1),
        ("no-transform, only-if-we-feel-like-it", "hit", 1),
    ],
)
async def test_the_caller_says_what_is_wanted(gateway, said, expected, kept):
    async with gateway_client(gateway) as http:
        first = await http.post("/v1/solve", json=UNSEEDED)
        reply = await http.post("/v1/solve", json=UNSEEDED, headers={"cache-control": said})
        assert reply.headers.get("x-acemath-cache") == expected and len(gateway.answers.kept) == kept
        last = await http.post("/v1/solve", json=UNSEEDED)
    newest = reply if expected == "miss" else first
    assert last.headers["x-acemath-cache"] == "hit" and last.content == newest.content


async def test_nothing_is_kept_for_who_says_no_store(gateway):
    async with gateway_client(gateway, headers={"cache-control": "no-store"}) as http:
        for _ in range(2):
            assert (await http.post("/v1/solve", json=UNSEEDED)).status_code == 200
    assert not gateway.answers.kept and len(gateway.policy.calls) == 2


async def test_what_is_degraded_or_failed_is_not_kept(gateway):
    gateway.scorer.error = Unavailable("gone", code=ErrorCode.REWARD_UNAVAILABLE)
    async with gateway_client(gateway) as http:
        assert (await http.post("/v1/solve", json=UNSEEDED)).status_code == 503
        by_majority = await http.post("/v1/solve", json=UNSEEDED | {"on_scorer_failure": "majority"})
        assert by_majority.json()["degraded"] and by_majority.headers["x-acemath-cache"] == "miss"
    assert not gateway.answers.kept


async def test_while_the_store_is_away_everything_is_worked_on(gateway):
    gateway.answers.away = True
    async with gateway_client(gateway) as http:
        for _ in range(2):
            assert (await http.post("/v1/solve", json=UNSEEDED)).headers["x-acemath-cache"] == "miss"
        assert results((await http.get("/metrics")).text) == {"away": 2}


async def test_while_the_policy_is_away_what_was_kept_is_still_given(gateway):
    async with gateway_client(gateway) as http:
        await http.post("/v1/solve", json=UNSEEDED)
        gateway.policy.error = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE)
        assert (await http.post("/v1/solve", json=UNSEEDED)).headers["x-acemath-cache"] == "hit"
        assert (await http.post("/v1/solve", json=UNSEEDED | {"n": 2})).status_code == 503


async def test_an_idempotency_key_goes_before(gateway):
    async with gateway_client(gateway) as http:
        first = await http.post("/v1/solve", json=UNSEEDED, headers={"idempotency-key": "k1"})
        other = await http.post("/v1/solve", json=UNSEEDED, headers={"idempotency-key": "k2"})
        again = await http.post(
            "/v1/solve", json=UNSEEDED, headers={"idempotency-key": "k1", "cache-control": "no-cache"}
        )
    assert other.headers["x-acemath-cache"] == "hit"
    assert again.headers["idempotent-replayed"] == "true" and "x-acemath-cache" not in again.headers
    assert first.content == other.content == again.content


async def test_on_redis_two_gateways_share_it(valkey):
    one, two = (
        GatewayOnDoubles(redis_url=valkey.url, settings=PATIENT | {"instance": name}) for name in ("one", "two")
    )
    async with gateway_client(one) as first, gateway_client(two) as second:
        made = await first.post("/v1/solve", json=UNSEEDED)
        got = await second.post("/v1/solve", json=UNSEEDED)
    assert got.headers["x-acemath-cache"] == "hit" and got.content == made.content and not two.policy.calls


async def test_a_hit_costs_no_quota(valkey):
    settings = PATIENT | {"require_keys": True}
    gateway = GatewayOnDoubles(redis_url=valkey.url, settings=settings, admin_key=ADMIN)
    async with gateway_client(gateway) as http:
        new = {"name": "a", "scopes": ["solve"], "quotas": {"requests_per_minute": 1}}
        made = await http.post("/admin/v1/keys", json=new, headers={"authorization": f"Bearer {ADMIN}"})
        http.headers["authorization"] = f"Bearer {made.json()['key']}"
        answers = [await http.post("/v1/solve", json=UNSEEDED) for _ in range(5)]
        other = await http.post("/v1/solve", json=UNSEEDED | {"n": 2})
    assert [answer.status_code for answer in answers] == [200] * 5
    assert (other.status_code, other.json()["error"]["code"]) == (429, "requests_quota_exceeded")
    assert len(gateway.policy.calls) == 1


async def test_every_line_of_the_header_counts(gateway):
    async with gateway_client(gateway) as http:
        lines = [("cache-control", "max-age=60"), ("cache-control", "no-store")]
        assert (await http.post("/v1/solve", json=UNSEEDED, headers=lines)).status_code == 200
    assert not gateway.answers.kept


async def test_an_answer_does_not_wait_for_a_store_that_hangs(gateway, monkeypatch):
    monkeypatch.setattr(cached, "_STORE_SECONDS", 0.05)
    gateway.answers.hangs = True
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=UNSEEDED)
    assert reply.status_code == 200 and not gateway.answers.kept


async def test_nor_does_a_request(gateway, monkeypatch):
    monkeypatch.setattr(cached, "_STORE_SECONDS", 0.05)
    async with gateway_client(gateway) as http:
        await http.post("/v1/solve", json=UNSEEDED)
        gateway.answers.hangs = True
        reply = await http.post("/v1/solve", json=UNSEEDED)
        counted = results((await http.get("/metrics")).text)
    assert reply.status_code == 200 and len(gateway.policy.calls) == 2 and counted["away"] == 1
