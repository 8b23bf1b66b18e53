"""Who may be told of the end of a job: listed hosts at public addresses; and what sending to them comes to."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway.hook_receiver import KEY, Receiver, answer, to_loopback
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.errors import InvalidRequest
from acemath_gateway.adapters.webhook_http import HttpWebhooks, is_public
from acemath_gateway.jobqueue.hooks import Hooks

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
