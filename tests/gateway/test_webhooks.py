"""Webhooks: signed as Standard Webhooks has it, to listed hosts and public addresses only, again while it fails."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from acemath_core.errors import InvalidRequest
from acemath_core.settings import SettingsError
from acemath_gateway.adapters.webhook_http import HttpWebhooks, is_public
from acemath_gateway.jobqueue.hooks import Hooks
from acemath_gateway.jobqueue.signing import signed_headers, signing_key
from acemath_gateway.settings import GatewaySettings
from doubles.gateway_app import GatewayOnDoubles, eventually_true
from doubles.job_client import NDJSON, clients, ended, file, gateway

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "webhook.secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


class Receiver:
    """A server that answers each request with the next of `answers`, the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers) or [b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"]
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @asynccontextmanager
    async def open(self, tls: ssl.SSLContext | None = None):
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://hooks.test:{server.sockets[0].getsockname()[1]}/done"
        async with server:
            yield self


def answer(status: int, *more: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", "content-length: 0", "connection: close", *more, "", ""]).encode()


async def to_loopback(host: str, port: int) -> tuple[str, ...]:
    assert host == "hooks.test"
    return ("127.0.0.1",)


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


# ---------------------------------------------------------------------------------------------------- who may be told

LISTED = frozenset({"hooks.test", "other.test:8443", "[2001:db8::1]:443"})


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.test/x?y=1",
        "https://HOOKS.test/",
        "https://hooks.test:443/",
        "https://other.test:8443/x",
        "https://[2001:db8::1]/",
    ],
)
def test_listed_hosts_may_be_told(url):
    assert Hooks(LISTED, False, KEY).checked(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.test",
        "http://hooks.test/",
        "ftp://hooks.test/",
        "https://hooks.test:8443/",
        "https://other.test/",
        "https://hooks.test.evil.example/",
        "https://evil.example/?https://hooks.test/",
        "https://hooks.test@evil.example/",
        "https://evil.example\\@hooks.test/",
        "https://hooks.test/#x",
        "https://hooks.test:99999/",
        "https://hooks.test:x/",
        "https://[::1",
        "https://hooks.test/ x",
        "https://hooks.test/\r\nhost: evil.example",
        "https://hööks.test/",
        "https://hooks.test/" + "x" * 2048,
        "https://127.0.0.1/",
        "https:///x",
    ],
)
def test_nobody_else_may(url):
    with pytest.raises(InvalidRequest) as refused:
        Hooks(LISTED, False, KEY).checked(url)
    assert refused.value.param == "x-acemath-webhook" and "evil" not in refused.value.message


@given(st.text(max_size=60))
def test_no_text_gets_past_the_list(text):
    if Hooks(frozenset({"only.test"}), False, KEY).problem(f"https://{text}") is None:
        assert text.lower().startswith("only.test")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:0a00:0001::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::"])
def test_addresses_of_the_internet_are(address):
    assert is_public(address)


# ---------------------------------------------------------------------------------------------------------- sending


async def test_nothing_is_sent_inside_the_network_even_if_only_one_address_is_there():
    async with Receiver().open() as receiver:

        async def resolve(host: str, port: int) -> tuple[str, ...]:
            return "93.184.216.34", "127.0.0.1"

        problem = await HttpWebhooks(inside=False, resolve=resolve).send(receiver.url, {}, b"{}")
        assert "not public" in problem and receiver.got == []


async def test_a_name_is_resolved_once_and_the_connection_goes_to_that_address():
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> tuple[str, ...]:
        asked.append(host)
        return ("127.0.0.1",) if len(asked) == 1 else ("127.0.0.2",)

    async with Receiver().open() as receiver:
        assert await HttpWebhooks(inside=True, resolve=rebinding).send(receiver.url, {"webhook-id": "1"}, b"{}") is None
        ((headers, body),) = receiver.got
    assert asked == ["hooks.test"] and body == b"{}" and headers["webhook-id"] == "1"
    assert headers["host"] == receiver.url.split("/")[2] and headers["content-type"] == "application/json"


@pytest.mark.parametrize(("name", "says"), [("hooks.test", None), ("evil.test", "certificate")])
async def test_the_certificate_must_be_the_names_although_the_address_was_asked(tmp_path, name, says):
    certificate = certificate_for(name, tmp_path)
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=certificate)
    serving.load_cert_chain(certificate)
    async with Receiver().open(serving) as receiver:
        problem = await HttpWebhooks(inside=True, resolve=to_loopback, tls=trusting).send(receiver.url, {}, b"{}")
        assert (problem is None and len(receiver.got) == 1) if says is None else (says in problem and not receiver.got)


def certificate_for(name: str, directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = directory / f"{name}.pem"
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return path


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answer(500), "HTTP 500"),
        (answer(410), "HTTP 410"),
        (answer(302, "location: http://127.0.0.1:1/"), "redirects are not followed"),
        (b"garbage\r\n\r\n", "RemoteProtocolError"),
    ],
)
async def test_what_is_no_success_is_a_problem(reply, says):
    async with Receiver(reply).open() as receiver:
        problem = await HttpWebhooks(inside=True, resolve=to_loopback).send(receiver.url, {}, b"{}")
        assert says in problem and len(receiver.got) == 1


async def test_nobody_there_and_no_name_are_problems():
    async def nowhere(host: str, port: int) -> tuple[str, ...]:
        raise OSError

    sender = HttpWebhooks(inside=True, resolve=to_loopback)
    assert "no connection" in await sender.send("http://hooks.test:1/", {}, b"{}")
    assert "no address" in await HttpWebhooks(inside=True, resolve=nowhere).send("http://x.test/", {}, b"{}")


# ------------------------------------------------------------------------------------------------------ the whole way


async def test_the_end_of_a_job_is_told_signed_and_again_until_it_is_taken(valkey, secret_file):
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

            await eventually_true(told, 10)
            assert (made["webhook"]["attempts"], made["webhook"]["last_problem"]) == (2, None)
            assert 'job_webhooks_total{outcome="delivered"} 1.0' in (await http.get("/metrics")).text
    (first, body), (second, same) = receiver.got
    assert body == same and first["webhook-id"] == second["webhook-id"] == f"msg_{made['id']}"
    signed = f"{second['webhook-id']}.{second['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert second["webhook-signature"] == f"v1,{expected}"
    message = json.loads(body)
    assert message["type"] == "job.completed" and message["data"]["counts"]["succeeded"] == 2


async def test_after_the_last_attempt_the_message_has_failed_and_the_job_says_why(valkey, secret_file):
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

        await eventually_true(failed, 10)
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
