"""Keys and quotas of two gateways on one real server: `docs/failure-table.md`, the rows about API keys."""

import asyncio
from contextlib import asynccontextmanager

import httpx
from registry.tiny import METADATA, write_checkpoint

from acemath_gateway.keys.access import FILE_CALLER
from acemath_registry import Registry
from doubles.gateway_app import PROBLEM, SCRIPT, GatewayOnDoubles, eventually, eventually_true, served
from doubles.ports import ScriptedPolicy
from doubles.servers import client_of
from doubles.valkey import ValkeyServer

ADMIN, FROM_FILE = "a" * 40, "f" * 40
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
SOLVE = {"problem": PROBLEM, "n": 2, "seed": 0}


@asynccontextmanager
async def replicas(valkey: ValkeyServer, tmp_path, *, policy: ScriptedPolicy | None = None, **settings):
    keys = tmp_path / "api.keys"
    keys.write_text(FROM_FILE)
    keys.chmod(0o600)
    settings = {"api_keys_file": keys, "key_cache_seconds": 0.2, "redis_timeout_seconds": 5.0, **settings}
    gateways = [
        GatewayOnDoubles(settings | {"instance": name}, redis_url=valkey.url, admin_key=ADMIN) for name in ("a", "b")
    ]
    for gateway in gateways:
        gateway.policy = policy or gateway.policy
    async with (
        served(gateways[0].app()) as first,
        served(gateways[1].app()) as second,
        client_of(first) as a,
        client_of(second) as b,
    ):
        yield a, b


async def _made(http: httpx.AsyncClient, *scopes: str, **quotas: int) -> tuple[str, dict[str, str]]:
    body = {"name": "k", "scopes": scopes or ("solve",), "quotas": quotas}
    made = (await http.post("/admin/v1/keys", json=body, headers=AS_ADMIN)).json()
    return made["id"], {"authorization": f"Bearer {made['key']}"}


async def _solve(http: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    return await http.post("/v1/solve", json=SOLVE, headers=headers)


def _code(reply: httpx.Response) -> str:
    return reply.json()["error"]["code"]


async def _refused(http: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    """Wait until a key is refused: what was read of it holds for a moment."""

    async def refused() -> bool:
        return (await _solve(http, headers)).status_code == status

    await eventually_true(refused)


async def _answers_again(http: httpx.AsyncClient) -> None:
    async def up() -> bool:
        return (await http.get("/admin/v1/keys", headers=AS_ADMIN)).status_code == 200

    await eventually_true(up)


async def test_a_key_works_on_every_gateway_and_soon_on_none(valkey, tmp_path):
    async with replicas(valkey, tmp_path) as (a, b):
        key_id, key = await _made(a)
        assert [(await _solve(http, key)).status_code for http in (a, b)] == [200, 200]
        assert (await b.delete(f"/admin/v1/keys/{key_id}", headers=AS_ADMIN)).status_code == 200
        assert (await _solve(b, key)).status_code == 401
        await _refused(a, key, 401)


async def test_a_quota_is_one_over_all_gateways(valkey, tmp_path):
    async with replicas(valkey, tmp_path) as (a, b):
        _, key = await _made(a, requests_per_minute=5)
        found = await asyncio.gather(*(_solve((a, b)[i % 2], key) for i in range(20)))
    assert sorted(one.status_code for one in found) == [200] * 5 + [429] * 15


async def test_away_a_key_that_was_seen_works_on_without_its_quota_and_no_other(valkey, tmp_path):
    valkey.sync_always()
    async with replicas(valkey, tmp_path) as (a, b):
        (_, seen), (_, unseen) = await _made(a, requests_per_minute=1), await _made(a)
        assert (await _solve(a, seen)).status_code == 200
        assert (await _solve(a, seen)).status_code == 429
        valkey.stop()

        async def works_without_its_quota() -> bool:
            answer = await _solve(a, seen)
            return answer.status_code == 200 and "x-ratelimit-limit-requests" not in answer.headers

        await eventually_true(works_without_its_quota)
        await asyncio.sleep(0.25)  # older than what was read of a key holds while the store is there
        assert await works_without_its_quota()
        for http, key in ((a, unseen), (b, seen)):
            refused = await _solve(http, key)
            assert refused.status_code == 503 and _code(refused) == "keys_unavailable"
            assert refused.headers["retry-after"] == "2"
        assert (await _solve(a, {"authorization": f"Bearer {FROM_FILE}"})).status_code == 200
        assert (await _solve(a, {"authorization": "Bearer nobody's"})).status_code == 401
        valkey.start()
        await _answers_again(a)
        assert (await _solve(a, seen)).status_code == 429, "what it had used is in the append-only file"
        assert (await _solve(a, unseen)).status_code == 200


async def test_tokens_of_a_request_that_was_let_in_before_are_paid_when_the_server_is_back(valkey, tmp_path):
    valkey.sync_always()
    policy = ScriptedPolicy(SCRIPT, gate=asyncio.Event())
    async with replicas(valkey, tmp_path, policy=policy) as (a, _):
        _, key = await _made(a, tokens_per_minute=10)
        solving = asyncio.create_task(_solve(a, key))
        await eventually(lambda: policy.running == 2)
        valkey.stop()
        policy.gate.set()
        assert (await solving).status_code == 200
        valkey.start()
        await _answers_again(a)
        assert (await _solve(a, key)).status_code == 429


async def test_away_for_longer_than_the_grace_a_key_that_was_seen_works_no_more(valkey, tmp_path):
    async with replicas(valkey, tmp_path, key_grace_seconds=0.5) as (a, _):
        _, key = await _made(a)
        assert (await _solve(a, key)).status_code == 200
        valkey.stop()
        await _refused(a, key, 503)


async def test_away_only_the_file_is_an_administrator_and_changes_channels_but_no_keys(valkey, tmp_path):
    registry = Registry(tmp_path / "registry")
    refs = [
        registry.publish(write_checkpoint(tmp_path / kind, kind), name=kind, kind=kind, metadata=METADATA)
        for kind in ("policy", "reward")
    ]
    release = {"release": registry.create_release(*refs).id, "expected_generation": 0}
    async with replicas(valkey, tmp_path, registry_root=registry.root) as (a, _):
        _, second = await _made(a, "admin")
        assert (await a.get("/admin/v1/keys", headers=second)).status_code == 200
        valkey.stop()
        await asyncio.sleep(0.25)  # older than what was read of a key holds
        away = await a.post("/admin/v1/releases/default", json=release, headers=second)
        assert away.status_code == 503 and _code(away) == "keys_unavailable"
        assert (await a.post("/admin/v1/releases/default", json=release, headers=AS_ADMIN)).status_code == 200
        assert (await a.get("/admin/v1/keys", headers=AS_ADMIN)).status_code == 503


async def test_keys_outlive_a_restart_and_not_a_flush(valkey, tmp_path):
    valkey.sync_always()
    async with replicas(valkey, tmp_path) as (a, _):
        _, key = await _made(a, requests_per_minute=1)
        valkey.stop()
        valkey.start()
        await _answers_again(a)
        assert (await _solve(a, key)).status_code == 200
        valkey.flush()
        await _refused(a, key, 401)


async def test_on_an_open_loopback_an_absent_server_changes_nothing_for_who_has_no_key(valkey, tmp_path):
    async with replicas(valkey, tmp_path, api_keys_file=None) as (a, _):
        _, key = await _made(a)
        valkey.stop()
        for headers in ({}, {"authorization": "Bearer unused-on-loopback"}, key):
            assert (await _solve(a, headers)).status_code == 200


def test_a_key_of_the_file_has_no_quotas():
    assert FILE_CALLER.scopes == {"solve", "jobs"} and not hasattr(FILE_CALLER, "quotas")
