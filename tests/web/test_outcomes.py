"""What became of a request is said alike by its answer, the figures and the log, whatever went wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message

from acemath_core.errors import ClientGone
from acemath_web.auth import KeySet
from acemath_web.context import note_facts
from acemath_web.health import Readiness
from acemath_web.logs import JsonFormatter
from acemath_web.service import create_service

SECRET = "what the caller asked"


def _failing() -> APIRouter:
    router = APIRouter()

    @router.get("/bug/{which}")
    async def bug(which: str) -> None:
        raise RuntimeError(SECRET)

    @router.get("/gone")
    async def gone() -> None:
        raise ClientGone("the caller left")

    @router.get("/left")
    async def left() -> None:
        raise ClientDisconnect

    @router.get("/cancelled")
    async def cancelled() -> None:
        raise asyncio.CancelledError

    return router


def _noting() -> APIRouter:
    router = APIRouter()

    @router.get("/noted/{what}")
    async def noted(what: str) -> None:
        note_facts(release="r-1")
        await asyncio.create_task(_notes_more())

    @router.get("/many")
    async def many() -> None:
        note_facts(long="x" * 1000)
        for number in range(1000):
            note_facts(**{f"fact_{number}": number})

    return router


def _streams() -> APIRouter:
    router = APIRouter()

    @router.get("/half")
    async def half() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"a"
            raise RuntimeError(SECRET)

        return StreamingResponse(lines())

    @router.get("/slow")
    async def slow() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"a"
                await asyncio.sleep(0.01)

        return StreamingResponse(lines())

    @router.get("/waits")
    async def waits(request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    return router


async def _notes_more() -> None:
    note_facts(n=8)


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


class _Lines(logging.Handler):
    """What the service writes to its log, as JSON, formatted where it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, object]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def log() -> Iterator[_Lines]:
    handler, logger = _Lines(), logging.getLogger("acemath_web")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


class _Probe:
    def __init__(self, keys: KeySet | None = None) -> None:
        self.registry = CollectorRegistry()
        self.app = create_service(
            name="probe",
            routers=[_failing(), _noting(), _streams()],
            readiness=lambda: Readiness(True),
            registry=self.registry,
            keys=keys or KeySet([]),
            lifespan=_no_lifespan,
            max_body_bytes=1000,
        )

    async def get(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://probe") as http:
            return await http.get(path, headers={"x-request-id": "req-1"})

    def counted(self, route: str) -> dict[str, float]:
        """Status → how many requests of that route."""
        return {
            sample.labels["status"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "acemath_probe_http_requests_total" and sample.labels["route"] == route
        }


@pytest.fixture
def probe() -> _Probe:
    return _Probe()


async def test_a_bug_is_a_500_everywhere_and_can_be_found_by_its_id(probe: _Probe, log: _Lines) -> None:
    answer = await probe.get("/bug/1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "req-1"
    assert SECRET not in answer.text
    assert probe.counted("/bug/{which}") == {"500": 1.0}
    (line,) = [line for line in log.lines if line["level"] == "error"]
    assert line["request_id"] == "req-1" and "RuntimeError" in str(line["message"]) and "exception" in line


async def test_a_bug_after_the_first_byte_breaks_the_connection_off_and_is_logged(probe: _Probe, log: _Lines) -> None:
    await probe.get("/half")
    assert probe.counted("/half") == {"500": 1.0}, "the 200 was said too early: the answer is not whole"
    assert [line["request_id"] for line in log.lines if line["level"] == "error"] == ["req-1"]


@pytest.mark.parametrize("path", ["/gone", "/left"])
async def test_a_caller_that_left_is_499_and_no_error_of_ours(probe: _Probe, log: _Lines, path: str) -> None:
    await probe.get(path)
    assert probe.counted(path) == {"499": 1.0}
    assert not [line for line in log.lines if line["level"] == "error"]


async def test_what_is_cancelled_is_499(probe: _Probe) -> None:
    with pytest.raises(asyncio.CancelledError):
        await probe.get("/cancelled")
    assert probe.counted("/cancelled") == {"499": 1.0}


@pytest.mark.parametrize("path", ["/slow", "/waits"])
async def test_a_caller_that_leaves_before_the_end_is_499_whatever_was_said_before(probe: _Probe, path: str) -> None:
    left = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        if not sent and path == "/slow":
            await left.wait()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        left.set()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "path": path, "headers": []}
    await asyncio.wait_for(probe.app({**scope, "query_string": b"", "root_path": ""}, receive, send), 10)
    assert probe.counted(path) == {"499": 1.0}


def _of_requests(log: _Lines) -> list[dict[str, object]]:
    return [line for line in log.lines if line["logger"] == "acemath_web.access"]


async def test_a_request_is_one_line_without_its_query_its_texts_and_its_key(probe: _Probe, log: _Lines) -> None:
    await probe.get(f"/noted/{SECRET}?q={SECRET}")
    (line,) = _of_requests(log)
    assert 0 <= float(str(line.pop("seconds"))) < 10
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "acemath_web.access",
        "message": "request",
        "request_id": "req-1",
        "method": "GET",
        "route": "/noted/{what}",
        "status": 200,
        "release": "r-1",
        "n": 8,
    }


async def test_the_line_of_a_refusal_has_its_code(probe: _Probe, log: _Lines) -> None:
    await probe.get(f"/{SECRET}")
    await probe.get("/gone")
    await probe.get("/bug/1")
    found = [(line["route"], line["status"], line["code"]) for line in _of_requests(log)]
    assert found == [
        ("unmatched", 404, "not_found"),
        ("/gone", 499, "client_gone"),
        ("/bug/{which}", 500, "internal_error"),
    ]


async def test_who_has_no_key_is_logged_and_counted_by_what_was_asked(log: _Lines) -> None:
    probe = _Probe(KeySet([SecretStr("k" * 32)]))
    for path in ("/gone", "/bug/1", f"/{SECRET}"):
        assert (await probe.get(path)).status_code == 401
    assert [line["route"] for line in _of_requests(log)] == ["/gone", "/bug/{which}", "unmatched"]
    assert probe.counted("/bug/{which}") == {"401": 1.0}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
async def test_probes_are_lines_for_debugging_only(probe: _Probe, log: _Lines, path: str) -> None:
    await probe.get(path)
    assert [line["level"] for line in _of_requests(log)] == ["debug"]


async def test_facts_are_few_short_and_never_hide_what_a_line_says(probe: _Probe, log: _Lines) -> None:
    note_facts(release="nobody asked")  # outside of a request there is no line
    await probe.get("/many")
    (line,) = _of_requests(log)
    assert line["status"] == 200 and len(line) < 32
    assert line["long"] == "x" * 128
    for name in ("status", "msg", "request_id"):
        with pytest.raises(ValueError, match=name):
            note_facts(**{name: 1})
