"""Who calls a gateway without keys is on this machine and knows it; a path has one spelling."""

import pytest
from starlette.responses import PlainTextResponse

from acemath_web.hosts import LoopbackHostMiddleware, names_loopback
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client

KEY = "k" * 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "127.1.evil"]
)
async def test_another_hosts_page_is_refused_where_there_are_no_keys(host):
    async with gateway_client(GatewayOnDoubles(), headers={"host": host}) as http:
        for reply in (await http.post("/v1/solve", json={"problem": PROBLEM}), await http.get("/")):
            assert reply.status_code == 400 and reply.json()["error"]["param"] == "host"
            assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [
        ("1.1", ["localhost"], 200),
        ("1.1", [], 400),
        ("1.0", [], 200),
        ("1.1", ["localhost", "evil.example"], 400),
        ("1.1", ["localhost", "localhost"], 400),
    ],
)
async def test_a_request_names_one_host(version, hosts, status):
    async def app(scope, receive, send):
        await PlainTextResponse("here")(scope, receive, send)

    said = []

    async def send(message):
        said.append(message)

    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "http_version": version, "method": "GET", "path": "/", "headers": headers}
    await LoopbackHostMiddleware(app)(scope, None, send)
    assert said[0]["status"] == status


async def test_with_keys_any_host_will_do(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    headers = {"host": "math.example", "authorization": f"Bearer {KEY}"}
    async with gateway_client(GatewayOnDoubles(settings={"api_keys_file": keys}), headers=headers) as http:
        assert (await http.post("/v1/solve", json={"problem": PROBLEM})).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("LOCALHOST:1", True),
        ("[::1]:8080", True),
        ("", False),
        ("[::1", False),
        ("0.0.0.0", False),
        ("localhost@evil.example", False),
    ],
)
def test_what_names_loopback(host, loopback):
    assert names_loopback(host) is loopback


@pytest.mark.parametrize("path", ["/v1/solve/", "/livez/", "/v1/models/"])
async def test_a_trailing_slash_is_another_path_and_no_redirect(path):
    async with gateway_client(GatewayOnDoubles()) as http:
        for reply in (await http.get(path), await http.post(path, json={"problem": PROBLEM})):
            assert reply.status_code == 404 and reply.json()["error"]["code"] == "not_found"
            assert "location" not in reply.headers
