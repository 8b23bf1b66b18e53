"""`acemath keys` at a real gateway: what it prints for people and for scripts, and how it fails."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner, Result

from acemath_cli.app import build_app
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client

ADMIN = "a" * 40


@pytest.fixture
def acemath(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ACEMATH_CLI__API_KEY", ADMIN)

    async def call(http, *arguments: str) -> Result:
        command = ["keys", *arguments, "--url", str(http.base_url)]
        return await asyncio.to_thread(CliRunner().invoke, build_app(), command)

    return call


async def test_a_key_is_made_listed_and_revoked(acemath):
    async with gateway_client(GatewayOnDoubles(settings={"require_keys": True}, admin_key=ADMIN)) as http:
        made = await acemath(http, "create", "a team", "--scope", "solve", "--requests-per-minute", "5", "--json")
        key = json.loads(made.stdout)
        assert key["scopes"] == ["solve"] and key["quotas"]["requests_per_minute"] == 5
        headers = {"authorization": f"Bearer {key['key']}"}
        assert (await http.post("/v1/solve", json={"problem": PROBLEM}, headers=headers)).status_code == 200
        for_people = await acemath(http, "create", "another")
        assert "scopes  jobs, solve\nquotas  none\nkey     acemath_" in for_people.stdout
        table = (await acemath(http, "list")).stdout
        assert key["id"] in table and "5 requests/min" in table and key["key"] not in table
        listed = json.loads((await acemath(http, "list", "--json")).stdout)["data"]
        assert {one["name"] for one in listed} == {"another", "a team"}
        assert f"revoked {key['id']} (a team)" in (await acemath(http, "revoke", key["id"])).stdout
        again = await acemath(http, "revoke", key["id"], "--json")
        assert json.loads(again.stdout)["revoked_at"]
        assert (await http.post("/v1/solve", json={"problem": PROBLEM}, headers=headers)).status_code == 401


async def test_quotas_of_a_key_are_changed(acemath):
    async with gateway_client(GatewayOnDoubles(settings={"require_keys": True}, admin_key=ADMIN)) as http:
        made = await acemath(
            http, "create", "a team", "--requests-per-minute", "5", "--tokens-per-minute", "9", "--json"
        )
        key_id = json.loads(made.stdout)["id"]
        changed = await acemath(http, "change", key_id, "--requests-per-minute", "0", "--sequences-in-flight", "8")
        assert changed.stdout == f"{key_id} (a team): quotas 9 tokens/min, 8 in flight\n"
        renamed = await acemath(http, "change", key_id, "--name", "b team", "--json")
        assert json.loads(renamed.stdout)["name"] == "b team"
        nothing = await acemath(http, "change", key_id)
        assert nothing.exit_code == 1 and "names nothing to change" in nothing.stderr


async def test_the_admin_key_may_come_from_its_file(acemath, tmp_path, monkeypatch):
    monkeypatch.delenv("ACEMATH_CLI__API_KEY")
    path = tmp_path / "admin.key"
    path.write_text(ADMIN)
    path.chmod(0o600)
    async with gateway_client(GatewayOnDoubles(admin_key=ADMIN)) as http:
        refused = await acemath(http, "list")
        assert refused.exit_code == 1 and "401 invalid_api_key" in refused.stderr
        assert (await acemath(http, "list", "--key-file", str(path))).exit_code == 0
        path.chmod(0o644)
        refused = await acemath(http, "list", "--key-file", str(path))
        assert refused.exit_code == 1 and "chmod 600" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", ""), "name: "),
        (("create", "k", "--requests-per-minute", "0"), "requests_per_minute: "),
        (("create", "k", "--scope", "solve", "--scope", "solve"), "twice"),
        (("revoke", "../v1"), "is not the id of a key"),
        (("revoke", "key-0000000000000000"), "404 not_found"),
    ],
)
async def test_what_cannot_be_is_one_sentence_and_exit_code_1(acemath, arguments, said):
    async with gateway_client(GatewayOnDoubles(admin_key=ADMIN)) as http:
        result = await acemath(http, *arguments)
    assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.output
