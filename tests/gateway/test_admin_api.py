"""`/admin/v1` over HTTP: who may, and keys from their making to their end."""

import httpx
import jsonschema
import pytest

from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client

ADMIN = "a" * 40
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
KEYS = "/admin/v1/keys"
ROUTES = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("PATCH", f"{KEYS}/key-0123456789abcdef"),
    ("DELETE", f"{KEYS}/key-0123456789abcdef"),
    ("POST", "/admin/v1/releases/default"),
    ("POST", "/admin/v1/releases/default/rollback"),
]


def _gateway(**settings) -> GatewayOnDoubles:
    return GatewayOnDoubles(settings=settings, admin_key=ADMIN)


def _as(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _make(http: httpx.AsyncClient, *scopes: str, **quotas: int) -> dict:
    body = {"name": "a team", "scopes": scopes, "quotas": quotas}
    made = await http.post(KEYS, json=body, headers=AS_ADMIN)
    assert made.status_code == 201, made.text
    return made.json()


# -------------------------------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_on_loopback_solving_is_open_and_admin_is_not(method, path):
    async with gateway_client(_gateway()) as http:
        assert (await http.post("/v1/solve", json={"problem": PROBLEM})).status_code == 200
        for headers in ({}, _as("unused-on-loopback"), _as("acemath_" + "x" * 43)):
            refused = await http.request(method, path, headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        made = await _make(http, "solve", "jobs")
        refused = await http.request(method, path, headers=_as(made["key"]))
        assert refused.status_code == 403 and "'admin'" in refused.json()["error"]["message"]


async def test_a_gateway_without_an_admin_key_has_no_open_admin_route():
    async with gateway_client(GatewayOnDoubles()) as http:
        for method, path in ROUTES:
            assert (await http.request(method, path, headers=AS_ADMIN)).status_code == 401


async def test_the_admin_key_opens_nothing_but_admin():
    async with gateway_client(_gateway()) as http:
        refused = await http.post("/v1/solve", json={"problem": PROBLEM}, headers=AS_ADMIN)
    assert refused.status_code == 403 and "'solve'" in refused.json()["error"]["message"]


# ----------------------------------------------------------------------------------------------------------------- keys


async def test_a_key_lives_from_its_making_to_its_end():
    gateway = _gateway(require_keys=True, key_cache_seconds=60)
    async with gateway_client(gateway) as http:
        made = await _make(http, "solve", requests_per_minute=5)
        assert made["id"].startswith("key-") and made["last_four"] == made["key"][-4:]
        assert made["created_by"] == "admin-file" and made["revoked_at"] is None
        body, headers = {"problem": PROBLEM}, _as(made["key"])
        assert (await http.post("/v1/solve", json=body)).status_code == 401
        assert (await http.post("/v1/solve", json=body, headers=headers)).status_code == 200
        listed = (await http.get(KEYS, headers=AS_ADMIN)).json()["data"]
        assert listed == [{name: value for name, value in made.items() if name != "key"}]
        gone = await http.delete(f"{KEYS}/{made['id']}", headers=AS_ADMIN)
        assert gone.status_code == 200 and gone.json()["revoked_at"] is not None
        assert (await http.post("/v1/solve", json=body, headers=headers)).status_code == 401
        assert (await http.get(KEYS, headers=AS_ADMIN)).json()["data"] == [gone.json()]
        assert (await http.delete(f"{KEYS}/{made['id']}", headers=AS_ADMIN)).json() == gone.json()


async def test_quotas_and_name_of_a_key_are_changed_and_hold_at_once():
    gateway = _gateway(require_keys=True, key_cache_seconds=60)
    async with gateway_client(gateway) as http:
        made = await _make(http, "solve", requests_per_minute=1, tokens_per_minute=1_000_000)
        path, headers, body = f"{KEYS}/{made['id']}", _as(made["key"]), {"problem": PROBLEM}
        answers = [(await http.post("/v1/solve", json=body, headers=headers)).status_code for _ in range(2)]
        assert answers == [200, 429]
        more = await http.patch(path, json={"quotas": {"requests_per_minute": None}}, headers=AS_ADMIN)
        assert more.status_code == 200 and more.json()["quotas"]["tokens_per_minute"] == 1_000_000
        assert more.json()["quotas"]["requests_per_minute"] is None and "key" not in more.json()
        assert (await http.post("/v1/solve", json=body, headers=headers)).status_code == 200
        named = await http.patch(path, json={"name": "b team"}, headers=AS_ADMIN)
        assert named.json() == {**more.json(), "name": "b team"}
        assert (await http.get(KEYS, headers=AS_ADMIN)).json()["data"] == [named.json()]
        await http.delete(path, headers=AS_ADMIN)
        assert (await http.patch(path, json={"name": "c team"}, headers=AS_ADMIN)).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"quotas": {}}, None),
        ({"name": None}, None),
        ({"name": ""}, "name"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"quotas": {"requests_per_minute": 0}}, "quotas.requests_per_minute"),
    ],
)
async def test_a_change_of_nothing_or_of_what_cannot_be_changed_is_refused(body, param):
    async with gateway_client(_gateway()) as http:
        made = await _make(http, "solve")
        refused = await http.patch(f"{KEYS}/{made['id']}", json=body, headers=AS_ADMIN)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
        assert (await http.get(KEYS, headers=AS_ADMIN)).json()["data"][0]["quotas"] == made["quotas"]


async def test_the_answer_that_holds_a_key_is_kept_by_nobody():
    async with gateway_client(_gateway()) as http:
        answer = await http.post(KEYS, json={"name": "k", "scopes": ["jobs"]}, headers=AS_ADMIN)
    assert answer.headers["cache-control"] == "no-store"


async def test_a_key_that_was_made_may_be_an_administrators():
    async with gateway_client(_gateway()) as http:
        second = await _make(http, "admin")
        body = {"name": "third", "scopes": ["solve"]}
        third = await http.post(KEYS, json=body, headers=_as(second["key"]))
        assert third.status_code == 201 and third.json()["created_by"] == second["id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["solve"]}, "name"),
        ({"name": "k", "scopes": []}, "scopes"),
        ({"name": "k", "scopes": ["root"]}, "scopes.0"),
        ({"name": "k", "scopes": ["solve"], "quotas": {"requests_per_minute": 0}}, "quotas.requests_per_minute"),
        ({"name": "k", "scopes": ["solve"], "expires": 1}, "expires"),
    ],
)
async def test_a_bad_field_is_named(body, param):
    async with gateway_client(_gateway()) as http:
        refused = await http.post(KEYS, json=body, headers=AS_ADMIN)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


async def test_a_method_that_a_path_does_not_have_is_told_all_that_it_has():
    async with gateway_client(_gateway()) as http:
        wrong = await http.put(KEYS, headers=AS_ADMIN)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, POST"


async def test_a_key_that_is_not_there_is_a_404_and_one_that_cannot_be_a_400():
    async with gateway_client(_gateway()) as http:
        assert (await http.delete(f"{KEYS}/key-{'0' * 16}", headers=AS_ADMIN)).status_code == 404
        assert (await http.delete(f"{KEYS}/nonsense", headers=AS_ADMIN)).status_code == 400


async def test_while_the_store_is_away_keys_cannot_be_changed_and_the_file_keys_go_on():
    gateway = _gateway()
    async with gateway_client(gateway) as http:
        gateway.keys.away = True
        away = await http.post(KEYS, json={"name": "k", "scopes": ["solve"]}, headers=AS_ADMIN)
        assert away.status_code == 503 and away.json()["error"]["code"] == "keys_unavailable"
        assert away.headers["retry-after"]


# ------------------------------------------------------------------------------------------------------------- document


async def test_the_document_has_the_admin_routes_their_bodies_and_their_errors():
    async with gateway_client(_gateway()) as http:
        document = (await http.get("/openapi.json")).json()
        make = document["paths"][KEYS]["post"]
        schema = make["requestBody"]["content"]["application/json"]["schema"]
        for taken in ({"name": "k", "scopes": ["solve"]}, {"name": "k", "scopes": ["jobs", "admin"], "quotas": {}}):
            jsonschema.validate(taken, schema)
            assert (await http.post(KEYS, json=taken, headers=AS_ADMIN)).status_code == 201
        for refused in ({"name": "k"}, {"name": "é", "scopes": ["jobs"]}, {"name": "k", "scopes": ["jobs", "jobs"]}):
            assert not jsonschema.Draft202012Validator(schema).is_valid(refused)
            assert (await http.post(KEYS, json=refused, headers=AS_ADMIN)).status_code == 400
    assert make["security"] == [{"bearer": []}] and {"201", "401", "403", "4XX", "5XX"} <= make["responses"].keys()
    paths = {"/admin/v1/keys/{key_id}", "/admin/v1/releases/{channel}", "/admin/v1/releases/{channel}/rollback"}
    assert paths <= document["paths"].keys()
    assert "422" not in make["responses"]
