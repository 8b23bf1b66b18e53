"""`Idempotency-Key` over a real socket: one answer for a key, however often it is asked for."""

import asyncio
import json

import pytest
from gateway.test_http_solve import SOLVE, left

from acemath_core.errors import ErrorCode, Unavailable
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, gateway_client
from doubles.ports import TARGET


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles()


async def test_the_same_key_gives_the_same_answer_once_made(gateway):
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        first = await http.post("/v1/solve", json=SOLVE)
        # another spelling of the same body
        again = await http.post(
            "/v1/solve",
            content=json.dumps({"seed": 0, "n": 3, "problem": PROBLEM, "stream": False}),
            headers={"content-type": "application/json"},
        )
    assert first.content == again.content and len(gateway.policy.calls) == 1
    assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-acemath-release"] == TARGET.release


async def test_two_keys_for_one_request_are_refused(gateway):
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE, headers=[("idempotency-key", "a"), ("idempotency-key", "b")])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "Idempotency-Key") and not gateway.policy.calls


async def test_a_second_request_with_the_key_waits_for_the_first(gateway):
    gateway.policy.token_seconds = 0.03
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        replies = await asyncio.gather(*(http.post("/v1/solve", json=SOLVE) for _ in range(3)))
    assert len({reply.content for reply in replies}) == 1 and len(gateway.policy.calls) == 1


async def test_the_key_with_another_body_is_a_conflict(gateway):
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        await http.post("/v1/solve", json=SOLVE)
        reply = await http.post("/v1/solve", json=SOLVE | {"n": 2})
    assert reply.status_code == 409 and reply.json()["error"]["code"] == "idempotency_conflict"
    assert reply.headers["x-should-retry"] == "false"


async def test_a_failure_is_not_kept_under_the_key(gateway):
    gateway.policy.error = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE)
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        assert (await http.post("/v1/solve", json=SOLVE)).status_code == 503
        gateway.policy.error = None
        assert (await http.post("/v1/solve", json=SOLVE)).status_code == 200


async def test_a_client_that_leaves_frees_its_key(gateway):
    gateway.policy.gate = asyncio.Event()
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        asking = asyncio.create_task(http.post("/v1/solve", json=SOLVE))
        await eventually(lambda: gateway.idempotency.entries and gateway.policy.running)
        await left(asking)
        await eventually(lambda: not gateway.idempotency.entries)


async def test_two_callers_do_not_share_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    keys.chmod(0o600)
    gateway = GatewayOnDoubles(settings={"api_keys_file": keys})
    async with gateway_client(gateway, headers={"idempotency-key": "k1"}) as http:
        for key in ("one", "two"):
            reply = await http.post("/v1/solve", json=SOLVE, headers={"authorization": f"Bearer {key}"})
            assert "idempotent-replayed" not in reply.headers
        assert (await http.post("/v1/solve", json=SOLVE)).status_code == 401
        assert (await http.get("/")).status_code == 200
    assert len(gateway.policy.calls) == 2


@pytest.mark.parametrize(("key", "more"), [("k1", {"stream": True}), ("two words", {}), ("x" * 256, {}), ("", {})])
async def test_keys_that_cannot_be_honoured_are_refused(gateway, key, more):
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | more, headers={"idempotency-key": key})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "Idempotency-Key"


async def test_without_the_store_a_key_is_refused_and_a_plain_solve_works(gateway):
    gateway.idempotency.away = True
    async with gateway_client(gateway) as http:
        refused = await http.post("/v1/solve", json=SOLVE, headers={"idempotency-key": "k1"})
        plain = await http.post("/v1/solve", json=SOLVE)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "idempotency_unavailable"
    assert plain.status_code == 200
