"""Every request that is not started is counted once by its reason, wherever it is refused."""

import asyncio

import httpx
import pytest

from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_gateway.routes import streams
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, eventually, gateway_client
from doubles.stores import MemoryLimit

SOLVE = {"problem": PROBLEM, "n": 3}


async def rejections(http: httpx.AsyncClient, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Reason → count, without those at 0."""
    lines = (await http.get("/metrics", headers=headers)).text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("acemath_gateway_rejections_total{")]
    return {name.split('"')[1]: float(value) for name, value in pairs if float(value)}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.NOT_READY, "not_ready"),
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, "invalid"),
        (ErrorCode.REWARD_UNAVAILABLE, None),
    ],
)
async def test_refusals_of_the_solver_whole_and_streamed(stream, code, reason):
    gateway = GatewayOnDoubles()
    kind = InvalidRequest if code is ErrorCode.CONTEXT_LENGTH_EXCEEDED else Unavailable
    gateway.release.error = kind("no", code=code)
    async with gateway_client(gateway) as http:
        reply = await http.post("/v1/solve", json=SOLVE | {"stream": stream})
        assert reply.json()["error"]["code"] == code
        assert await rejections(http) == ({reason: 1} if reason else {})


async def test_what_never_reaches_a_route(tmp_path):
    keys, internal = tmp_path / "keys", tmp_path / "internal"
    for path, key in ((keys, "sk-right\n"), (internal, "sk-internal\n")):
        path.write_text(key)
        path.chmod(0o600)
    gateway = GatewayOnDoubles({"api_keys_file": keys, "internal_key_file": internal, "max_body_bytes": 2048})
    async with gateway_client(gateway) as http:
        assert (await http.post("/v1/solve", json=SOLVE)).status_code == 401
        right = {"authorization": "Bearer sk-right"}
        assert (await http.post("/v1/solve", json={"problem": "7" * 4000}, headers=right)).status_code == 413
        assert (await http.post("/v1/solve", json={"problem": ""}, headers=right)).status_code == 400
        assert (await http.post("/v1/solve", json=SOLVE, headers=right)).status_code == 200
        assert await rejections(http, {"authorization": "Bearer sk-internal"}) == {
            "unauthenticated": 1,
            "too_large": 1,
            "invalid": 1,
        }


async def test_a_stream_that_has_begun_and_then_finds_no_place(monkeypatch):
    monkeypatch.setattr(streams, "STATUS_GRACE_SECONDS", 0.05)
    gateway = GatewayOnDoubles({"max_queue_seconds": 0.5}, limit=MemoryLimit(places=3))
    gateway.policy.hang_after = 0
    async with gateway_client(gateway) as http:
        holding = asyncio.create_task(http.post("/v1/solve", json=SOLVE))
        await eventually(lambda: gateway.limit.held == 3)
        late = await http.post("/v1/solve", json=SOLVE | {"stream": True})
        assert late.status_code == 200 and '"overloaded"' in late.text
        whole = await http.post("/v1/solve", json=SOLVE)
        assert whole.status_code == 503 and whole.headers["retry-after"]
        assert await rejections(http) == {"overloaded": 2}
        holding.cancel()
        await asyncio.wait({holding})
