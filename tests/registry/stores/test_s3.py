"""The S3 store where a file system has no like: refusals, lost answers, long lists, large files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pytest
from registry.stores.conftest import BUCKET, App, Faults, Make, Rule, publish, refuse, store_of

from acemath_registry import (
    Registry,
    StorageError,
)
from acemath_registry.stores import log
from acemath_registry.stores import s3 as s3_module
from acemath_registry.stores.s3 import S3Bucket
from acemath_registry.stores.transfer import download_file, upload_file


def test_a_denied_request_names_the_permission(registry: Registry, faults: Faults) -> None:
    faults.rule = refuse("403 Forbidden", "AccessDenied")
    with pytest.raises(StorageError, match="is denied") as caught:
        registry.write_status("policy", "a", {})
    assert isinstance(caught.value.__cause__, PermissionError)


def test_a_store_that_refuses_is_asked_once(registry: Registry, faults: Faults) -> None:
    faults.rule = refuse("403 Forbidden", "403")
    with pytest.raises(StorageError, match="is denied"):
        registry.channel_mark("default")
    assert [method for method, _ in faults.seen] == ["HEAD"]


def without_conditions(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
    if environ["REQUEST_METHOD"] == "PUT":
        environ.pop("HTTP_IF_MATCH", None)
        environ.pop("HTTP_IF_NONE_MATCH", None)
    return None


def not_implemented(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
    if environ["REQUEST_METHOD"] != "PUT" or not environ.keys() & {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}:
        return None
    return refuse("501 Not Implemented", "NotImplemented")(app, environ, start_response)


@pytest.mark.parametrize("rule", [without_conditions, not_implemented])
def test_a_store_without_conditional_writes_is_refused(
    registry: Registry, faults: Faults, make_checkpoint: Make, rule: Any
) -> None:
    faults.rule = rule
    with pytest.raises(StorageError, match="does not obey conditional writes"):
        publish(registry, make_checkpoint())
    assert registry.versions() == []


def test_an_answer_that_was_lost_is_no_lost_race(registry: Registry, faults: Faults) -> None:
    layout = registry._layout
    path, lock = layout.channel("default"), layout.channel_lock("default")
    assert layout.store.create(path, b"0")
    lost = list[str]()

    def lose(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if lost or environ["REQUEST_METHOD"] != "PUT":
            return None
        lost.append(environ["PATH_INFO"])
        list(app(environ, lambda status, headers, exc_info=None: None))  # it is done, and nobody is told
        return refuse("500 Internal Server Error", "InternalError")(app, environ, start_response)

    faults.rule = lose
    with layout.store.changing(path, lock) as change:
        assert change.read() == b"0"
        change.write(b"1")
    assert len(lost) == 1 and layout.store.read(path) == b"1"
    lost.clear()
    layout.store.append(layout.audit, layout.audit_lock, b"line\n")
    assert len(lost) == 1 and layout.store.tail(layout.audit, 100) == [b"line"]


def without_answers(path: PurePath, *, heads: bool) -> Rule:
    """PUTs of this document are obeyed and answered by 500, every time; HEADs too, where `heads`."""

    def rule(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        method = environ["REQUEST_METHOD"]
        if not environ["PATH_INFO"].endswith(str(path)) or method not in {"PUT", "HEAD"} or (method, heads) == (
            "HEAD", False
        ):  # fmt: skip
            return None
        if method == "PUT":
            list(app(environ, lambda status, headers, exc_info=None: None))
        return refuse("500 Internal Server Error", "InternalError")(app, environ, start_response)

    return rule


def test_a_write_without_any_answer_is_looked_for(registry: Registry, faults: Faults) -> None:
    layout = registry._layout
    path = layout.channel("default")
    store_of(registry).bucket.require_conditions()
    faults.rule = without_answers(path, heads=False)
    with quick_retries():
        assert layout.store.create(path, b"0")
    faults.rule = None
    layout.store.remove(path)
    faults.rule = without_answers(path, heads=True)
    with quick_retries(), pytest.raises(StorageError, match="it may have taken place; read it"):
        layout.store.create(path, b"0")


@contextmanager
def quick_retries() -> Iterator[None]:
    """No wait between two attempts of a request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0)
        yield


def undecided(times: int, method: str) -> Rule:
    """The first conditional requests find another one under way."""
    left = [times]

    def rule(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != method or "HTTP_IF_NONE_MATCH" not in environ or not left[0]:
            return None
        left[0] -= 1
        return refuse("409 Conflict", "ConditionalRequestConflict")(app, environ, start_response)

    return rule


def test_a_request_that_is_not_decided_is_made_again(
    registry: Registry, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acemath_registry.stores.refusals._UNDECIDED_PAUSE_S", 0.0)
    bucket, key = store_of(registry).bucket, f"team/{tmp_path.name}"
    bucket.require_conditions()
    faults.rule = undecided(2, "PUT")
    assert bucket.put(f"{key}/small", b"0", only_if="*")
    (tmp_path / "large").write_bytes(data := os.urandom(5 * 1024 * 1024 + 3))
    faults.rule, heard, five = undecided(1, "POST"), list[int](), 5 * 1024 * 1024
    assert upload_file(bucket, tmp_path / "large", f"{key}/l", sha256="0" * 64, advance=heard.append, part_bytes=five)
    assert sum(heard) == len(data) == bucket.facts(f"{key}/l").size
    assert not bucket.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_lists_are_read_to_their_end(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PAGE_KEYS", 2)
    for number in range(5):
        registry.write_status("policy", f"p{number}", {"n": number})
    assert list(registry.statuses("policy")) == [f"p{number}" for number in range(5)]


def test_a_log_goes_on_in_another_piece(registry: Registry) -> None:
    bucket, path = store_of(registry).bucket, registry._layout.audit
    for number in range(7):
        log.append(bucket, path, f"line {number}\n".encode(), piece_bytes=20)
    assert log.tail(bucket, path, 1 << 20) == [f"line {number}".encode() for number in range(7)]
    assert log.tail(bucket, path, 5) == [b"line 6"]


def test_large_files_go_in_parts(registry: Registry, tmp_path: Path) -> None:
    bucket, key = store_of(registry).bucket, "team/large"
    bucket.delete(key)
    (tmp_path / "large").write_bytes(data := os.urandom(11 * 1024 * 1024 + 3))
    heard = list[int]()
    five = 5 * 1024 * 1024
    assert upload_file(bucket, tmp_path / "large", key, sha256="0" * 64, advance=heard.append, part_bytes=five)
    assert sum(heard) == len(data) and len(heard) == 3
    assert not upload_file(bucket, tmp_path / "large", key, sha256="1" * 64, advance=heard.append, part_bytes=five)
    assert bucket.facts(key).sha256 == "0" * 64, "the first stays"
    heard.clear()
    download_file(bucket, key, tmp_path / "back", advance=heard.append, part_bytes=five)
    assert (tmp_path / "back").read_bytes() == data and sum(heard) == len(data) and len(heard) == 3


def test_an_upload_that_breaks_off_is_taken_back(registry: Registry, faults: Faults, tmp_path: Path) -> None:
    bucket, key = store_of(registry).bucket, "team/broken"
    bucket.require_conditions()
    (tmp_path / "large").write_bytes(os.urandom(11 * 1024 * 1024))

    def stop(chunk_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_file(bucket, tmp_path / "large", key, sha256="0" * 64, advance=stop, part_bytes=5 * 1024 * 1024)
    assert not bucket.has_any(key)
    assert not bucket.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_download_that_breaks_off_goes_on(registry: Registry, faults: Faults, tmp_path: Path) -> None:
    bucket, key = store_of(registry).bucket, "team/cut"
    bucket.put(key, data := os.urandom(1000))
    cut = list[bool]()

    def cut_off(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if cut or environ["REQUEST_METHOD"] != "GET":
            return None
        cut.append(True)
        return [b"".join(app(environ, start_response))[:500]]

    faults.rule = cut_off
    download_file(bucket, key, tmp_path / "file", advance=lambda size: None)
    assert cut and (tmp_path / "file").read_bytes() == data


def test_a_bucket_is_connected_to_only_when_it_is_asked(aws: str) -> None:
    assert store_of(Registry(f"s3://{BUCKET}/x")).bucket._client is None
    assert S3Bucket(BUCKET, "x")._client is None
