"""Webhooks: signed as Standard Webhooks has it, to listed hosts and public addresses only, again while it fails."""

import base64
import hashlib
import hmac
import json

import pytest
from gateway.hook_receiver import KEY, SECRET, Receiver, answer, to_loopback
from pydantic import SecretStr

from acemath_core.settings import SettingsError
from acemath_gateway.adapters.webhook_http import HttpWebhooks
from acemath_gateway.jobqueue import notices, worker
from acemath_gateway.jobqueue.signing import signed_headers, signing_key
from acemath_gateway.settings import GatewaySettings
from doubles.gateway_app import GatewayOnDoubles, eventually_true
from doubles.job_client import NDJSON, clients, ended, file, gateway


@pytest.fixture
def hasty(monkeypatch):
    """What is due is looked for fifty times a second."""
    for module in (notices, worker):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "webhook.secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


# ------------------------------------------------------------------------------------------------------------- signing


def test_the_signature_is_the_one_of_the_specification():
    secret = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the example of its reference libraries
    body = b'{"test": 2432232314}'
    headers = signed_headers(signing_key(secret), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek" and headers["webhook-timestamp"] == "1614265330"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_?" + "A" * 40, SECRET[6:], "whsec_" + "A" * 100])
def test_a_secret_of_another_form_is_none(secret):
    with pytest.raises(SettingsError, match="whsec_"):
        signing_key(SecretStr(secret))


def test_hosts_without_a_secret_stop_the_start(tmp_path):
    with pytest.raises(SettingsError, match="WEBHOOK_SECRET_FILE"):
        GatewayOnDoubles(settings={"webhook_hosts": "hooks.test"}).app()


# ------------------------------------------------------------------------------------------------------ the whole way


async def test_the_end_of_a_job_is_told_signed_and_again_until_it_is_taken(valkey, secret_file, hasty):
    one = gateway(
        valkey,
        settings={"webhook_secret_file": secret_file, "webhook_inside": True, "webhook_pauses_seconds": "0.1, 0.1"},
        webhooks=HttpWebhooks(inside=True, resolve=to_loopback),
    )
    async with Receiver(answer(503), answer(200)).open() as receiver:
        one.settings["webhook_hosts"] = receiver.url.split("/")[2]
        async with clients(one) as http:
            headers = NDJSON | {"x-acemath-webhook": receiver.url}
            made = (await http.post("/v1/jobs", content=file(2), headers=headers)).json()
            assert (made["webhook"]["state"], made["webhook"]["url"]) == ("waiting", receiver.url)
            await ended(http, made["id"])

            async def told() -> bool:
                nonlocal made
                made = (await http.get(f"/v1/jobs/{made['id']}")).json()
                return made["webhook"]["state"] == "delivered"

            await eventually_true(told)
            assert (made["webhook"]["attempts"], made["webhook"]["last_problem"]) == (2, None)
            assert 'job_webhooks_total{outcome="delivered"} 1.0' in (await http.get("/metrics")).text
    (first, body), (second, same) = receiver.got
    assert body == same and first["webhook-id"] == second["webhook-id"] == f"msg_{made['id']}"
    signed = f"{second['webhook-id']}.{second['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert second["webhook-signature"] == f"v1,{expected}"
    message = json.loads(body)
    assert message["type"] == "job.completed" and message["data"]["counts"]["succeeded"] == 2


async def test_after_the_last_attempt_the_message_has_failed_and_the_job_says_why(valkey, secret_file, hasty):
    hosts = {"webhook_hosts": "hooks.test:1", "webhook_pauses_seconds": "[0.1]"}
    settings = {"webhook_secret_file": secret_file, "webhook_inside": True} | hosts
    one = gateway(valkey, settings=settings, webhooks=HttpWebhooks(inside=True, resolve=to_loopback))
    async with clients(one) as http:
        headers = NDJSON | {"x-acemath-webhook": "http://hooks.test:1/"}
        made = (await http.post("/v1/jobs", content=file(1), headers=headers)).json()

        async def failed() -> bool:
            nonlocal made
            made = (await http.get(f"/v1/jobs/{made['id']}")).json()
            return made["webhook"]["state"] == "failed"

        await eventually_true(failed)
        assert made["state"] == "completed" and made["webhook"]["attempts"] == 2
        assert "no connection" in made["webhook"]["last_problem"]


async def test_a_gateway_without_webhooks_says_so_and_takes_no_line(valkey):
    async with clients(gateway(valkey)) as http:
        headers = NDJSON | {"x-acemath-webhook": "https://hooks.test/"}
        refused = await http.post("/v1/jobs", content=file(1), headers=headers)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-acemath-webhook"
        assert (await http.get("/v1/jobs")).json()["data"] == []


def test_the_lists_of_the_settings_are_json_or_commas():
    def settings(**values):
        return GatewaySettings(registry_root="/nonexistent", **values)

    assert settings(webhook_hosts=" A.test , b.test:1,").webhook_hosts == ("a.test", "b.test:1")
    assert settings(webhook_hosts='["a.test"]').webhook_hosts == ("a.test",)
    assert settings(webhook_pauses_seconds="1,2.5").webhook_pauses_seconds == (1.0, 2.5)
