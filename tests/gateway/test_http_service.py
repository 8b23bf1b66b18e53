"""The rest of the gateway's face: models, releases, readiness, draining, the page, settings, and how a start fails."""

import asyncio
import base64
import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
from loopback_ports import free_run

from acemath_core.settings import SettingsError
from acemath_gateway.__main__ import main
from acemath_gateway.settings import GatewaySettings, is_loopback
from doubles.gateway_app import PROBLEM, GatewayOnDoubles, gateway_client
from doubles.ports import POLICY, REWARD, TARGET


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles()


# ------------------------------------------------------------------------------------------------- models, readiness


async def test_there_is_one_model_and_the_release_behind_it(gateway):
    async with gateway_client(gateway) as http:
        models = (await http.get("/v1/models")).json()
        releases = (await http.get("/v1/releases")).json()
    assert [model["id"] for model in models["data"]] == ["acemath"]
    assert releases["data"] == [
        {
            "object": "release",
            "id": TARGET.release,
            "generation": TARGET.generation,
            "models": {"policy": POLICY, "reward": REWARD},
        }
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/solve"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/models"),
        ("GET", "/v1/releases"),
        ("GET", "/admin/v1/keys"),
        ("GET", "/v1/models/acemath"),
    ],
)
async def test_what_is_asked_in_the_query_is_not_ignored(gateway, method, path):
    async with gateway_client(gateway) as http:
        answer = await http.request(method, f"{path}?n=16", json={"problem": PROBLEM} if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


async def test_ready_when_a_release_is_served_and_not_while_draining(gateway):
    async with gateway_client(gateway) as http:
        assert (await http.get("/readyz")).status_code == 200
        gateway.serving = False
        assert (await http.get("/readyz")).status_code == 503
        gateway.serving = True
        gateway.state.drain()
        drained = await http.get("/readyz")
        assert drained.status_code == 503 and "draining" in drained.json()["reason"]
        assert (await http.get("/livez")).status_code == 200
        assert (await http.post("/v1/solve", json={"problem": PROBLEM})).status_code == 200


async def test_without_a_release_the_lists_are_empty_and_nothing_breaks(gateway):
    gateway.serving = False
    async with gateway_client(gateway) as http:
        assert (await http.get("/v1/releases")).json()["data"] == []
        assert (await http.get("/v1/models")).json()["data"][0]["release"] is None


async def test_the_schema_describes_the_bodies_that_we_read_ourselves(gateway):
    async with gateway_client(gateway) as http:
        schema = (await http.get("/openapi.json")).json()
    body = schema["paths"]["/v1/solve"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["n"]["maximum"] == 64 and body["properties"]["selection"]["enum"]
    assert "$ref" not in str(schema["paths"]["/v1/solve"]["post"]["requestBody"])
    assert "/v1/chat/completions" in schema["paths"]


async def test_the_doors_figures_are_there_from_the_start(gateway):
    async with gateway_client(gateway) as http:
        before = (await http.get("/metrics")).text
        await http.post("/v1/solve", json={"problem": PROBLEM})
        await http.post("/v1/solve", json={"problem": ""})
        after = (await http.get("/metrics")).text
    assert 'acemath_gateway_admissions_total{limit="shared"} 0.0' in before
    assert 'acemath_gateway_idempotent_requests_total{result="conflict"} 0.0' in before
    assert 'acemath_gateway_admissions_total{limit="local"} 1.0' in after
    assert 'acemath_gateway_rejections_total{reason="invalid"} 1.0' in after


# ----------------------------------------------------------------------------------------------------------- the page


async def test_the_page_stands_alone_and_runs_only_its_own_script(gateway):
    async with gateway_client(gateway) as http:
        page = await http.get("/")
    policy = page.headers["content-security-policy"]
    script = re.search(r"<script>(.*?)</script>", page.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.findall(r"(?:src|href)=[\"']https?:", page.text)
    assert "innerHTML" not in script and "eval(" not in script and "textContent" in script
    assert page.headers["x-content-type-options"] == "nosniff"


# ----------------------------------------------------------------------------------------------------------- settings


def settings(**values):
    return GatewaySettings(registry_root="/nonexistent", **values)


def test_urls_may_be_a_list_or_separated_by_commas(monkeypatch):
    monkeypatch.setenv("ACEMATH_GATEWAY__REGISTRY_ROOT", "/r")
    monkeypatch.setenv("ACEMATH_GATEWAY__POLICY_URLS", "http://a:1/, http://b:2")
    monkeypatch.setenv("ACEMATH_GATEWAY__REWARD_URLS", '["http://c:3"]')
    read = GatewaySettings.checked_from_env()
    assert read.policy_urls == ("http://a:1", "http://b:2") and read.reward_urls == ("http://c:3",)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POLICY_URLS", "localhost:1", "not an http"),
        ("REWARD_URLS", "", "at least 1"),
        ("REWARD_URLS", "[oops", "REWARD_URLS"),
        ("MAX_SEQUENCES_IN_FLIHGT", "8", "MAX_SEQUENCES_IN_FLIGHT?"),
        ("MAX_SEQUENCES_IN_FLIGHT", "0", "greater than or equal to 1"),
        ("DEFAULT_DEADLINE_SECONDS", "1000", "lower the first"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, name, value, says):
    monkeypatch.setenv("ACEMATH_GATEWAY__REGISTRY_ROOT", "/r")
    monkeypatch.setenv(f"ACEMATH_GATEWAY__{name}", value)
    with pytest.raises(SettingsError, match=re.escape(says)):
        GatewaySettings.checked_from_env()


def test_the_redis_url_is_not_printed():
    assert "hunter2" not in repr(settings(redis_url="redis://:hunter2@h:1/0"))


def test_two_gateways_on_one_host_have_two_names():
    assert settings(port=1).instance != settings(port=2).instance


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gw", False)],
)
def test_what_counts_as_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_without_keys_only_loopback(tmp_path):
    assert settings().api_keys() == ()
    with pytest.raises(SettingsError, match="API_KEYS_FILE"):
        settings(host="0.0.0.0").api_keys()
    keys = tmp_path / "keys"
    keys.write_text("# callers\nabc\n\ndef\n")
    keys.chmod(0o600)
    assert [key.get_secret_value() for key in settings(host="0.0.0.0", api_keys_file=keys).api_keys()] == ["abc", "def"]
    keys.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        settings(api_keys_file=keys).api_keys()
    keys.chmod(0o600)
    keys.write_text("# none\n")
    with pytest.raises(SettingsError, match="has no key"):
        settings(api_keys_file=keys).api_keys()
    with pytest.raises(SettingsError, match="create it"):
        settings(api_keys_file=tmp_path / "absent").api_keys()


# ---------------------------------------------------------------------------------------------------- the real process


def start(tmp_path, **more: str) -> tuple[subprocess.Popen[str], str]:
    """The real gateway with nothing behind it: no Redis, no policy, an empty registry."""
    port = free_run()
    (tmp_path / "registry").mkdir(exist_ok=True)
    values = {
        "REGISTRY_ROOT": str(tmp_path / "registry"),
        "PORT": str(port),
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "POLICY_URLS": "http://127.0.0.1:1",
        "REWARD_URLS": "http://127.0.0.1:1",
        "DRAIN_NOTICE_SECONDS": "4",  # in which a busy machine asks once
    } | more
    env = {k: v for k, v in os.environ.items() if not k.startswith("ACEMATH_")}
    env |= {f"ACEMATH_GATEWAY__{name}": value for name, value in values.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "acemath_gateway"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, f"http://127.0.0.1:{port}"


def wait_until_live(url: str) -> None:
    until = time.monotonic() + 120
    with httpx.Client(base_url=url, trust_env=False, verify=False) as client:  # a TLS context for each look costs 40 ms
        while time.monotonic() < until:
            try:
                if client.get("/livez").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    raise AssertionError("the gateway did not start")


def wait_until_draining(url: str) -> None:
    """A signal is taken some time after it was sent; until then the answer is that of before."""
    until = time.monotonic() + 60
    with httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        while "draining" not in (unready := client.get("/readyz")).json()["reason"]:
            assert time.monotonic() < until, "the signal was not taken"
    assert unready.status_code == 503


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"HOST": "0.0.0.0"}, "API_KEYS_FILE"),
        ({"INTERNAL_KEY_FILE": "/nonexistent/key"}, "create it with mode 0600"),
        ({"REDIS_ULR": "x"}, "did you mean ACEMATH_GATEWAY__REDIS_URL?"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_one_line(tmp_path, monkeypatch, capsys, more, says):
    for name, value in ({"REGISTRY_ROOT": str(tmp_path)} | more).items():
        monkeypatch.setenv(f"ACEMATH_GATEWAY__{name}", value)
    assert main() == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1 and says in said


def test_the_process_starts_alone_says_what_is_missing_and_drains(tmp_path):
    key = tmp_path / "new" / "admin.key"
    process, url = start(tmp_path, ADMIN_KEY_FILE=str(key))
    try:
        wait_until_live(url)
        administrator = {"authorization": f"Bearer {key.read_text().strip()}"}
        assert httpx.get(f"{url}/admin/v1/keys", trust_env=False).status_code == 401
        assert httpx.get(f"{url}/admin/v1/keys", headers=administrator, trust_env=False).status_code == 503  # no Redis
        unready = httpx.get(f"{url}/readyz?verbose", trust_env=False)
        assert unready.status_code == 503 and "promote" in unready.json()["reason"]
        refused = httpx.post(f"{url}/v1/solve", json={"problem": PROBLEM}, trust_env=False, timeout=20)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_ready"
        process.send_signal(signal.SIGTERM)
        wait_until_draining(url)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        said = process.communicate()[1]
    assert "Traceback" not in said and "bug" not in said
    assert f"the admin key was made; it is in {key}" in said and key.read_text().strip() not in said


def test_a_second_signal_does_not_wait(tmp_path):
    process, url = start(tmp_path, DRAIN_NOTICE_SECONDS="60")
    try:
        wait_until_live(url)
        process.send_signal(signal.SIGINT)
        wait_until_draining(url)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) is not None
    finally:
        process.kill()
        process.communicate()


async def test_many_gateways_in_one_process_do_not_share_figures():
    one, two = GatewayOnDoubles(), GatewayOnDoubles()
    async with gateway_client(one) as first, gateway_client(two) as second:
        await asyncio.gather(*(first.post("/v1/solve", json={"problem": PROBLEM}) for _ in range(2)))
        text = (await second.get("/metrics")).text
    assert 'acemath_gateway_admissions_total{limit="local"} 0.0' in text
