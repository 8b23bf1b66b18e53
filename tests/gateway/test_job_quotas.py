"""Jobs are charged to the quotas of the key that asked for them, wait for these, and end with their key."""

import httpx

from doubles.gateway_app import PROBLEM, eventually_true
from doubles.job_client import NDJSON, clients, ended, file, gateway
from doubles.valkey import ValkeyServer

ADMIN = "a" * 40
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}


async def _key(http: httpx.AsyncClient, **quotas: int) -> tuple[str, dict[str, str]]:
    body = {"name": "k", "scopes": ["jobs", "solve"], "quotas": quotas}
    made = (await http.post("/admin/v1/keys", json=body, headers=AS_ADMIN)).json()
    return made["id"], {"authorization": f"Bearer {made['key']}"}


async def _succeeded(http: httpx.AsyncClient, job: str, headers: dict[str, str]) -> int:
    return (await http.get(f"/v1/jobs/{job}", headers=headers)).json()["counts"]["succeeded"]


async def test_lines_use_up_their_keys_quota_wait_for_it_and_fail_when_the_key_is_revoked(tmp_path):
    with ValkeyServer(tmp_path) as valkey:
        one = gateway(valkey, settings={"job_idle_seconds": 1, "key_cache_seconds": 0.1})
        one.admin_key = ADMIN
        async with clients(one) as http:
            key_id, headers = await _key(http, requests_per_minute=2)
            made = await http.post("/v1/jobs", content=file(4), headers=NDJSON | headers)
            job = made.json()["id"]

            async def two() -> bool:
                return await _succeeded(http, job, headers) == 2

            await eventually_true(two)
            refused = await http.post("/v1/solve", json={"problem": PROBLEM, "n": 2}, headers=headers)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "requests_quota_exceeded"
            others = await http.post("/v1/jobs", content=file(3), headers=NDJSON)
            assert (await ended(http, others.json()["id"]))["counts"]["succeeded"] == 3
            assert await _succeeded(http, job, headers) == 2
            await http.delete(f"/admin/v1/keys/{key_id}", headers=AS_ADMIN)

            async def none_left() -> bool:
                return valkey.ask(f"HGET acemath:job:{job} state").startswith(b"$9\r\ncompleted")

            await eventually_true(none_left)
            raw = valkey.ask(f"HMGET acemath:job:{job} succeeded failed")
            assert raw.split(b"\r\n")[2::2][:2] == [b"2", b"2"], raw


async def test_tokens_of_lines_are_paid(tmp_path):
    with ValkeyServer(tmp_path) as valkey:
        one = gateway(valkey, settings={"job_idle_seconds": 1})
        one.admin_key = ADMIN
        async with clients(one) as http:
            _, headers = await _key(http, tokens_per_minute=10)
            made = await http.post("/v1/jobs", json={"problem": PROBLEM, "n": 3}, headers=headers)
            job = made.json()["id"]

            async def done() -> bool:
                return await _succeeded(http, job, headers) == 1

            await eventually_true(done)
            refused = await http.post("/v1/solve", json={"problem": PROBLEM, "n": 2}, headers=headers)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "tokens_quota_exceeded"
