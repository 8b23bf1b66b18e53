from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from registry.tiny import METADATA

from acemath_core.errors import ServiceError
from acemath_registry import ModelRef, Registry
from acemath_registry.layout import Layout
from acemath_registry.stores import place_of, s3
from acemath_registry.stores.objects import ObjectStore
from doubles.s3_server import App, Faults, Rule, environment, serving

BUCKET = "models"
Make = Callable[..., Path]


def store_of(registry: Registry) -> ObjectStore:
    store = registry._layout.store
    assert isinstance(store, ObjectStore)
    return store


def publish(registry: Registry, source: Path, **options: Any) -> ModelRef:
    return registry.publish(source, name="pol", kind="policy", metadata=METADATA, **options)


def refuse(status: str, code: str) -> Rule:
    """Answers every request with this error."""

    def rule(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]

    return rule


@contextmanager
def at_request(store: ObjectStore, number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Ahead of the `number`-th request, `action` takes place as a whole; what it raises is its own business."""
    seen, events = [0], store.bucket.client.meta.events

    def before(**given: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            with suppress(ServiceError):
                action()

    events.register("before-call.s3", before)
    try:
        yield seen
    finally:
        events.unregister("before-call.s3", before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, Faults]]:
    """An S3 server."""
    with serving() as found:
        yield found


@pytest.fixture
def aws_environment(s3_server: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who may use the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(s3_server[0]).items():
        monkeypatch.setenv(name, value)


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
