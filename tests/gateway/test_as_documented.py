"""The gateway answers what its `/openapi.json` says, on every path, to a key that opens all of them."""

from __future__ import annotations

from pathlib import Path

from documents.cases import check_all

from doubles.gateway_app import GatewayOnDoubles, gateway_client
from doubles.valkey import ValkeyServer

ADMIN = "a" * 40


async def test_every_answer_is_one_that_the_document_has(valkey: ValkeyServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("k" * 20)  # so that callers need a key
    gateway = GatewayOnDoubles(redis_url=valkey.url, admin_key=ADMIN, settings={"api_keys_file": keys})
    async with gateway_client(gateway, headers={"authorization": f"Bearer {ADMIN}"}) as http:
        wanted = {"name": "all", "scopes": ["solve", "jobs", "admin"]}
        made = (await http.post("/admin/v1/keys", json=wanted)).json()
        http.headers["authorization"] = f"Bearer {made['key']}"
        assert await check_all(http, (await http.get("/openapi.json")).json()) > 50
