from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from registry.tiny import METADATA
from werkzeug.serving import WSGIRequestHandler, make_server

from acemath_registry import ModelRef, Registry
from acemath_registry.layout import Layout
from acemath_registry.stores import place_of, s3
from acemath_registry.stores.objects import ObjectStore

BUCKET = "models"
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Make = Callable[..., Path]
Rule = Callable[[App, dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]


def store_of(registry: Registry) -> ObjectStore:
    store = registry._layout.store
    assert isinstance(store, ObjectStore)
    return store


def publish(registry: Registry, source: Path, **options: Any) -> ModelRef:
    return registry.publish(source, name="pol", kind="policy", metadata=METADATA, **options)


class Faults:
    """In front of the server: `rule` may answer a request itself, or change it; None lets it through.

    Attributes:
        rule: asked of each request.
        seen: method and path of each request.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.rule: Rule | None = None
        self.seen: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        answer = None if self.rule is None else self.rule(self._app, environ, start_response)
        return self._app(environ, start_response) if answer is None else answer


def refuse(status: str, code: str) -> Rule:
    """Answers every request with this error."""

    def rule(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]

    return rule


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # so that it answers "Expect: 100-continue", for which a client waits a second

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, Faults]]:
    """An S3 server. One request at a time: moto looks at a condition first and writes then, unlocked."""
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=False, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", faults
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def aws_environment(s3_server: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who may use the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1",
        "ENDPOINT_URL": s3_server[0], "CONFIG_FILE": "/dev/null", "SHARED_CREDENTIALS_FILE": "/dev/null",
        "EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture(scope="session")
def shared_client() -> list[Any]:
    """One connection for all tests: making one takes a fifth of a second."""
    return []


@pytest.fixture
def aws(
    s3_server: tuple[str, Faults], aws_environment: None, shared_client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Somebody who may use the server; its address."""
    if not shared_client:
        shared_client.append(s3.connect(BUCKET))
        shared_client[0].create_bucket(Bucket=BUCKET)
    monkeypatch.setattr(s3, "connect", lambda bucket: shared_client[0])
    return s3_server[0]


@pytest.fixture
def faults(s3_server: tuple[str, Faults], aws: str) -> Iterator[Faults]:
    """What stands in front of the server."""
    found = s3_server[1]
    found.seen.clear()
    yield found
    found.rule = None


@pytest.fixture
def address(aws: str) -> str:
    """A place in a bucket where nothing is yet."""
    return f"s3://{BUCKET}/team/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def registry(address: str) -> Registry:
    return Registry(address)


@pytest.fixture(params=["disk", "s3"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    """Both stores, for what holds of both."""
    if request.param == "disk":
        return Layout(tmp_path / "registry")
    return Layout(*place_of(request.getfixturevalue("address")))


@pytest.fixture(params=["disk", "s3"])
def any_registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry" if request.param == "disk" else request.getfixturevalue("address"))
