from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Body, FastAPI, WebSocket
from prometheus_client import CollectorRegistry
from pydantic import Field, SecretStr
from starlette.responses import StreamingResponse
from starlette.types import Message

from acemath_core.errors import Unavailable
from acemath_core.wire import Text, Wire
from acemath_web.auth import KeySet
from acemath_web.context import current_request_id
from acemath_web.health import Readiness
from acemath_web.service import create_service

KEY = "k" * 32
INTERNAL = "i" * 32


class _Item(Wire):
    n: int = Field(ge=1)
    name: Text = ""


def _routes() -> APIRouter:
    router = APIRouter()

    @router.post("/items/{item_id}")
    async def put(item_id: int, item: _Item) -> dict[str, int]:
        return {"id": item_id, "n": item.n}

    @router.websocket("/socket")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()

    @router.get("/full")
    async def full() -> None:
        raise Unavailable("no room; try again", retry_after=0.2)

    @router.get("/bug")
    async def bug() -> None:
        raise RuntimeError("the secret is 42")

    @router.get("/id")
    async def request_id() -> dict[str, str | None]:
        return {"id": current_request_id()}

    @router.post("/raw")
    async def raw(body: Annotated[bytes, Body()]) -> int:
        return len(body)

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(0)
            yield b"b"

        return StreamingResponse(lines())

    return router


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def _app(keys: KeySet, internal: KeySet | None) -> FastAPI:
    return create_service(
        name="probe",
        routers=[_routes()],
        readiness=lambda: Readiness(False, "still loading", {"version": "m@1"}),
        registry=CollectorRegistry(),
        keys=keys,
        internal_keys=internal,
        lifespan=_no_lifespan,
        max_body_bytes=1000,
    )


def _client(keys: KeySet, internal: KeySet | None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=_app(keys, internal), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://probe", headers={"authorization": f"Bearer {KEY}"})


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with _client(KeySet([SecretStr("old" * 9), SecretStr(KEY)]), None) as http:
        yield http


async def test_a_bad_field_is_a_400_that_names_it_and_does_not_repeat_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("/items/1", json={"n": -7})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"], error["code"]) == ("n", "invalid_request_error", "invalid_request")
    assert "-7" not in error["message"]


async def test_an_unknown_field_has_its_own_code(client: httpx.AsyncClient) -> None:
    error = (await client.post("/items/1", json={"n": 1, "nn": 2})).json()["error"]
    assert (error["param"], error["code"]) == ("nn", "unsupported_parameter")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"n": NaN}', b'{"n": 1, "name": "\\ud800"}', b"[" * 900],
)
async def test_a_body_that_is_no_such_json_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/items/1", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_503_carries_retry_after_of_at_least_a_second_and_a_reason(client: httpx.AsyncClient) -> None:
    answer = await client.get("/full")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (answer.headers["x-acemath-error-code"], answer.json()["error"]["type"]) == (
        "overloaded",
        "overloaded_error",
    )


async def test_a_bug_is_a_500_that_tells_nothing_about_itself(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/bug", headers={"x-request-id": "req-1"})
    assert answer.status_code == 500
    assert "42" not in answer.text
    assert "RuntimeError" in caplog.text


async def test_unknown_paths_and_methods_have_the_same_shape(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/nothing"), await client.get("/items/1")):
        assert answer.status_code in (404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_wrong_path_or_method_is_named_with_what_there_is(client: httpx.AsyncClient) -> None:
    path = (await client.post("/itemz/1", json={})).json()["error"]["message"]
    assert "/itemz/1" in path and "/openapi.json" in path
    wrong = await client.get("/items/1")
    assert "GET" in wrong.json()["error"]["message"] and "/items/1; use POST" in wrong.json()["error"]["message"]
    assert wrong.headers["allow"] == "POST"
    long = (await client.get("/" + "x" * 5000)).json()["error"]["message"]
    assert len(long) < 300


@pytest.mark.parametrize("header", [b"", b"Bearer", b"Bearer wrong", f"Basic {KEY}".encode(), b"Bearer \xff"])
async def test_without_a_valid_key_401(client: httpx.AsyncClient, header: bytes) -> None:
    answer = await client.get("/id", headers=[(b"authorization", header)])
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_both_keys_are_valid_while_they_are_rotated(client: httpx.AsyncClient) -> None:
    assert (await client.get("/id", headers={"authorization": f"bearer {'old' * 9}"})).status_code == 200


async def test_probes_and_metrics_need_no_key(client: httpx.AsyncClient) -> None:
    statuses = [
        (await client.get(path, headers={"authorization": ""})).status_code
        for path in ("/livez", "/readyz", "/health", "/metrics")
    ]
    assert statuses == [200, 503, 503, 200]


@pytest.mark.parametrize(
    ("query", "verbose"),
    [
        ("verbose=1", True),
        ("verbose=True", True),
        ("verbose=", True),
        ("verbose=false", False),
        ("verbose=0", False),
        ("verbose=garbage", False),
        ("", False),
    ],
)
async def test_verbose_is_what_its_value_says(client: httpx.AsyncClient, query: str, verbose: bool) -> None:
    assert ("details" in (await client.get(f"/readyz?{query}")).json()) is verbose


async def test_readyz_says_why_and_verbose_says_more(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"ready": False, "reason": "still loading"}
    assert (await client.get("/readyz?verbose")).json()["details"] == {"version": "m@1"}


async def test_the_request_id_is_accepted_or_made_and_echoed_on_errors_too(client: httpx.AsyncClient) -> None:
    given = await client.get("/id", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == given.json()["id"] == "abc-1"
    made = await client.get("/nothing", headers={"x-request-id": "bad id\twith tab"})
    assert len(made.headers["x-request-id"]) == 32


@pytest.mark.parametrize("announced", [True, False])
async def test_a_long_body_is_413_whether_its_length_is_announced_or_not(
    client: httpx.AsyncClient, announced: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    answer = await client.post("/raw", content=b"x" * 1100 if announced else chunks())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert answer.headers["connection"] == "close"


async def test_metrics_count_by_route_template_and_status(client: httpx.AsyncClient) -> None:
    await client.post("/items/7", json={"n": 1})
    await client.get("/made/up/path")
    text = (await client.get("/metrics")).text
    assert 'acemath_probe_http_requests_total{method="POST",route="/items/{item_id}",status="200"} 1.0' in text
    assert 'route="unmatched"' in text
    assert "/made/up/path" not in text


async def test_a_stream_passes_through_whole(client: httpx.AsyncClient) -> None:
    assert (await client.get("/stream")).content == b"ab"


@pytest.mark.parametrize("name", ["x" * 900, "x\n\x1b[2J" * 40, "ü" * 130])
async def test_an_unknown_fields_name_is_repeated_in_part_only(client: httpx.AsyncClient, name: str) -> None:
    error = (await client.post("/items/1", json={"n": 1, name: 2})).json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert len(error["param"]) <= 128 and error["param"][:1] == name[:1]
    assert len(error["message"]) < 200 and error["message"].isprintable()


async def test_what_a_long_value_does_to_a_message_is_bounded(client: httpx.AsyncClient) -> None:
    error = (await client.post("/items/1", json={"n": "x" * 900})).json()["error"]
    assert error["param"] == "n" and len(error["message"]) < 600


PLAIN = {"ready": False, "reason": "still loading"}


async def test_readyz_says_more_only_to_who_has_a_key(client: httpx.AsyncClient) -> None:
    for header in ("", "Bearer wrong", f"Basic {KEY}"):
        answer = await client.get("/readyz?verbose", headers={"authorization": header})
        assert (answer.status_code, answer.json()) == (503, PLAIN)
    async with _client(KeySet([SecretStr(KEY)]), KeySet([SecretStr(INTERNAL)])) as http:
        for key in (KEY, INTERNAL):
            answer = await http.get("/health?verbose", headers={"authorization": f"Bearer {key}"})
            assert answer.json()["details"] == {"version": "m@1"}


async def test_metrics_say_what_the_process_holds(client: httpx.AsyncClient) -> None:
    lines = (await client.get("/metrics")).text.splitlines()
    found = {name: float(value) for name, value in (line.split(" ") for line in lines if line.startswith("process_"))}
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] > 0


async def test_where_the_port_is_published_metrics_ask_for_the_internal_key() -> None:
    async with _client(KeySet([SecretStr(KEY)]), KeySet([SecretStr(INTERNAL)])) as client:
        for key, status in ((KEY, 401), ("", 401), (INTERNAL, 200)):
            answer = await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status
        assert (await client.get("/id", headers={"authorization": f"Bearer {INTERNAL}"})).status_code == 401
    async with _client(KeySet([SecretStr(KEY)]), KeySet([])) as client:
        assert (await client.get("/metrics")).status_code == 401, "no internal key: nobody is on the internal network"
    async with _client(KeySet([]), KeySet([SecretStr(INTERNAL)])) as client:
        assert (await client.get("/metrics")).status_code == 200, "without keys the service is bound to loopback"
        assert "details" in (await client.get("/readyz?verbose")).json()


async def _handshake(keys: KeySet, header: str | None) -> list[Message]:
    """What a client of the websocket /socket is sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"} if not sent else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    scope = {"type": "websocket", "asgi": {"spec_version": "2.3"}, "path": "/socket", "query_string": b""}
    await _app(keys, None)({**scope, "headers": headers, "root_path": "", "subprotocols": []}, receive, send)
    return sent


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer \xff"])
async def test_a_websocket_without_the_key_is_refused_before_it_is_accepted(header: str | None) -> None:
    (only,) = await _handshake(KeySet([SecretStr(KEY)]), header)
    assert (only["type"], only["code"]) == ("websocket.close", 1008)


async def test_a_websocket_with_the_key_is_accepted() -> None:
    first, *_ = await _handshake(KeySet([SecretStr(KEY)]), f"Bearer {KEY}")
    assert first["type"] == "websocket.accept"
    first, *_ = await _handshake(KeySet([]), None)
    assert first["type"] == "websocket.accept"
