"""Quotas over HTTP: what is counted, what is refused with which code, and what the headers say."""

import time

import httpx
import pytest

from acemath_gateway.keys.quotas import Bill, Standing
from acemath_gateway.keys.records import Quotas
from acemath_gateway.keys.told import quota_headers
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, gateway_client

ADMIN = "a" * 40
SOLVE = {"problem": PROBLEM, "n": 4, "seed": 0}
CHAT = {"model": "acemath", "messages": [{"role": "user", "content": PROBLEM}], "best_of": 4}


def _gateway(**settings) -> GatewayOnDoubles:
    return GatewayOnDoubles(settings=settings, admin_key=ADMIN)


async def _headers(http: httpx.AsyncClient, **quotas: int) -> dict[str, str]:
    """Those of a new key with these quotas."""
    body = {"name": "a team", "scopes": ["solve"], "quotas": quotas}
    made = await http.post("/admin/v1/keys", json=body, headers={"authorization": f"Bearer {ADMIN}"})
    return {"authorization": f"Bearer {made.json()['key']}"}


def _limits(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("x-ratelimit-")}


def _code(reply: httpx.Response) -> str:
    return reply.json()["error"]["code"]


async def test_requests_a_minute_are_counted_said_and_refused():
    async with gateway_client(_gateway()) as http:
        headers, others = await _headers(http, requests_per_minute=2), await _headers(http, requests_per_minute=2)
        for left, (path, body) in ((1, ("/v1/solve", SOLVE)), (0, ("/v1/chat/completions", CHAT))):
            answer = await http.post(path, json=body, headers=headers)
            assert answer.status_code == 200
            assert _limits(answer).keys() == {f"x-ratelimit-{one}-requests" for one in ("limit", "remaining", "reset")}
            assert (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-ratelimit-remaining-requests"]) == (
                "2",
                str(left),
            )
            assert 25 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        for stream in (False, True):
            refused = await http.post("/v1/solve", json=SOLVE | {"stream": stream}, headers=headers)
            assert refused.status_code == 429 and _code(refused) == "requests_quota_exceeded"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 25 <= int(refused.headers["retry-after"]) <= 30
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await http.post("/v1/solve", json=SOLVE, headers=others)).status_code == 200
        text = (await http.get("/metrics")).text
    assert 'acemath_gateway_rejections_total{reason="quota"} 2.0' in text


async def test_tokens_are_paid_when_they_are_known():
    gateway = _gateway()
    async with gateway_client(gateway) as http:
        headers = await _headers(http, tokens_per_minute=20)
        first = await http.post("/v1/solve", json=SOLVE, headers=headers)
        used = first.json()["usage"]["completion_tokens"]
        assert first.status_code == 200 and used > 20
        assert first.headers["x-ratelimit-limit-tokens"] == "20"
        assert first.headers["x-ratelimit-remaining-tokens"] == "0"
        assert float(first.headers["x-ratelimit-reset-tokens"].removesuffix("s")) == pytest.approx(3 * used, abs=1)
        answered = time.monotonic()
        refused = await http.post("/v1/solve", json=SOLVE, headers=headers)
        assert refused.status_code == 429 and _code(refused) == "tokens_quota_exceeded"
        passed = time.monotonic() - answered + 1  # it fills up meanwhile
        assert 3 * (used - 19) - passed - 1 <= int(refused.headers["retry-after"]) <= 3 * (used - 19) + 1


async def test_what_a_stream_generated_before_its_caller_left_is_paid():
    gateway = _gateway()
    gateway.scorer.seconds = 60.0  # the candidates are complete, the answer is not
    async with gateway_client(gateway) as http:
        headers = await _headers(http, tokens_per_minute=20)
        async with http.stream("POST", "/v1/solve", json=SOLVE | {"stream": True}, headers=headers) as answer:
            assert answer.headers["x-ratelimit-remaining-tokens"]
            seen = 0
            async for line in answer.aiter_lines():
                seen += line == "event: candidate.finished"
                if seen == 4:
                    break
        await eventually(lambda: not gateway.quotas.inside)
        assert (await http.post("/v1/solve", json=SOLVE, headers=headers)).status_code == 429


async def test_candidates_in_flight_are_bounded_and_more_than_ever_possible_is_the_callers_mistake(monkeypatch):
    monkeypatch.setattr("acemath_gateway.routes.streams.STATUS_GRACE_SECONDS", 0.05)
    gateway = _gateway()
    gateway.policy.hang_after = 1
    async with gateway_client(gateway) as http:
        headers = await _headers(http, sequences_in_flight=6)
        impossible = await http.post("/v1/solve", json=SOLVE | {"n": 7}, headers=headers)
        assert impossible.status_code == 400 and impossible.json()["error"]["param"] == "n"
        async with http.stream("POST", "/v1/solve", json=SOLVE | {"stream": True}, headers=headers):
            refused = await http.post("/v1/solve", json=SOLVE, headers=headers)
            assert refused.status_code == 429 and _code(refused) == "sequences_quota_exceeded"
            assert refused.headers["retry-after"] == "1" and not _limits(refused)
        await eventually(lambda: not gateway.quotas.inside)
        gateway.policy.hang_after = None
        assert (await http.post("/v1/solve", json=SOLVE, headers=headers)).status_code == 200


async def test_what_was_written_is_paid_for_however_it_ends():
    gateway = _gateway()
    async with gateway_client(gateway) as http:
        headers = await _headers(http, tokens_per_minute=100_000)
        assert (await http.post("/v1/solve", json=SOLVE, headers=headers)).status_code == 200
        gateway.policy.hang_after = 3  # no candidate ever ends
        late = await http.post("/v1/solve", json=SOLVE | {"deadline_seconds": 2.0}, headers=headers)
        assert late.status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/solve", json=SOLVE, headers=headers, timeout=2.0)
        await eventually(lambda: len(gateway.quotas.paid) == 3)
    whole, late_tokens, left = gateway.quotas.paid
    assert 0 < left == late_tokens < whole


async def test_what_costs_nothing():
    gateway = _gateway(max_queued_requests=0)
    async with gateway_client(gateway) as http:
        headers = await _headers(http, requests_per_minute=3)
        bad = await http.post("/v1/solve", json=SOLVE | {"n": 0}, headers=headers)
        assert bad.status_code == 400 and not _limits(bad)
        gateway.limit.held = gateway.limit.places
        full = await http.post("/v1/solve", json=SOLVE, headers=headers)
        assert full.status_code == 503 and _code(full) == "overloaded"
        gateway.limit.held = 0
        once = headers | {"idempotency-key": "k"}
        first, again = [await http.post("/v1/solve", json=SOLVE, headers=once) for _ in range(2)]
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert again.headers["idempotent-replayed"] == "true" and not _limits(again)
        last = await http.post("/v1/solve", json=SOLVE, headers=headers)
        assert last.headers["x-ratelimit-remaining-requests"] == "1"


async def test_who_has_no_quota_hears_of_none(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("f" * 40)
    keys.chmod(0o600)
    async with gateway_client(_gateway(api_keys_file=keys)) as http:
        for headers in ({"authorization": f"Bearer {'f' * 40}"}, await _headers(http)):
            answer = await http.post("/v1/solve", json=SOLVE, headers=headers)
            assert answer.status_code == 200 and not _limits(answer)


async def test_while_nothing_is_counted_nothing_is_said():
    gateway = _gateway()
    async with gateway_client(gateway) as http:
        headers = await _headers(http, requests_per_minute=1)
        gateway.quotas.away = True
        for _ in range(3):
            answer = await http.post("/v1/solve", json=SOLVE, headers=headers)
            assert answer.status_code == 200 and not _limits(answer)


def test_a_debt_is_said_as_nothing_left():
    bill = Bill(Quotas(tokens_per_minute=60), Standing(tokens=-5, tokens_reset_seconds=65.0), tokens=10)
    assert quota_headers(bill) == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "75.000s",
    }
