"""The S3 store where a file system has no like: refusals, lost answers, killed publishers, large files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pytest
from registry.keys import write_key
from registry.stores.conftest import BUCKET, App, Faults, Rule, refuse
from registry.tiny import METADATA

from acemath_core.errors import ServiceError
from acemath_registry import (
    Conflict,
    InvalidRequest,
    ModelRef,
    NotFound,
    Registry,
    RejectReason,
    SigningKey,
    StorageError,
    TrustedKeys,
    VerificationError,
)
from acemath_registry.stores import log, place_of
from acemath_registry.stores import s3 as s3_module
from acemath_registry.stores.objects import ObjectStore
from acemath_registry.stores.s3 import S3Bucket
from acemath_registry.stores.transfer import download_file, upload_file

Make = Callable[..., Path]


def store_of(registry: Registry) -> ObjectStore:
    store = registry._layout.store
    assert isinstance(store, ObjectStore)
    return store


def publish(registry: Registry, source: Path, **options: Any) -> ModelRef:
    return registry.publish(source, name="pol", kind="policy", metadata=METADATA, **options)


@pytest.mark.parametrize(
    "address", ["s3://", "s3://B/x", "s3://models/../x", "s3://models/a b", "gs://models/x", "s3:/x://"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidRequest, match="s3://bucket/prefix"):
        place_of(address)


def test_an_address_that_was_made_a_path_makes_no_directory() -> None:
    with pytest.raises(InvalidRequest, match="has lost a slash"):
        Registry(Path("s3://models/x"))


def test_a_bucket_without_a_prefix_is_a_place_too(aws: str) -> None:
    root, store = place_of("s3://models/")
    assert isinstance(store, ObjectStore) and store.names(root / "channels") == []


def test_without_credentials_it_says_which_to_set(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
        Registry(f"s3://{BUCKET}/x").channel("default")


def test_credentials_that_come_later_count(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(f"s3://{BUCKET}/x")
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        without.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StorageError, match="no AWS credentials"):
            registry.channel("default")
    with pytest.raises(NotFound):
        registry.channel("default")


@pytest.mark.parametrize("endpoint", ["minio:9000", "minio", "https://", "ftp://minio"])
def test_an_endpoint_that_is_no_address(aws_environment: None, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidRequest, match=r"AWS_ENDPOINT_URL .* needs http:// or https://"):
        Registry(f"s3://{BUCKET}/x").exists()


def test_an_endpoint_with_a_password_is_refused_and_not_shown(
    aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:s3cret@127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="AWS_ENDPOINT_URL") as caught:
        Registry(f"s3://{BUCKET}/x").exists()
    assert "s3cret" not in str(caught.value) and "ann" not in str(caught.value)


def test_without_botocore_it_says_what_to_install(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "botocore"] or ["botocore"]:
        monkeypatch.setitem(sys.modules, name, None)
    registry = Registry(f"s3://{BUCKET}/x")
    for use in (registry.exists, lambda: registry.write_status("policy", "a", {}), registry.versions):
        with pytest.raises(InvalidRequest, match=r"install acemath-registry\[s3\]"):
            use()
    with pytest.raises(InvalidRequest, match="install"):
        store_of(registry).create(registry._layout.channel("default"), b"{}")


def test_a_wrong_bucket_and_a_wrong_endpoint(
    aws_environment: None, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    with pytest.raises(NotFound, match="there is no bucket nobodys-bucket"):
        Registry("s3://nobodys-bucket/x").exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(s3_module, "ATTEMPTS", 1)
    with pytest.raises(StorageError, match=r"EndpointConnectionError: .*; check AWS_ENDPOINT_URL"):
        Registry(f"s3://{BUCKET}/x").exists()


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


def test_a_publisher_that_ends_at_any_request_leaves_nothing_that_is_seen(
    registry: Registry, faults: Faults, make_checkpoint: Make
) -> None:
    source = make_checkpoint()
    store_of(registry).bucket.require_conditions()
    step, ended = 0, False
    while not ended:
        left = [step]

        def fail(app: App, environ: dict[str, Any], start_response: Callable[..., Any], left: list[int] = left) -> Any:
            left[0] -= 1
            return refuse("403 Forbidden", "AccessDenied")(app, environ, start_response) if left[0] < 0 else None

        faults.rule = fail
        try:
            publish(registry, source)
        except ServiceError:
            ended = False
        else:
            ended = left[0] >= 0
        faults.rule = None
        for ref in registry.versions():
            assert registry.verify(ref).ref == ref
            ended = ended or left[0] >= 0
        if registry.versions() and not ended:  # the rest is the line in the log
            break
        step += 3
    assert step > 10
    ref = publish(registry, source)
    assert registry.versions() == [ref] and registry.verify(ref).ref == ref


def test_what_another_publisher_left_is_told_and_goes_when_it_is_old(
    registry: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scratch = make_checkpoint(), registry.address + "-elsewhere"
    ref = publish(Registry(scratch), source)
    version = registry._layout.version(ref)
    store_of(registry).bucket.put(str(version / "model.safetensors"), b"half of another")
    with pytest.raises(Conflict, match="was written by another publisher"):
        publish(registry, source)
    assert registry.versions() == []
    monkeypatch.setattr("acemath_registry.stores.objects.STALE_STAGING_S", -10.0)
    assert publish(registry, source) == ref and registry.verify(ref).ref == ref


def test_what_killed_processes_left_on_this_machine_goes_a_day_later(
    registry: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = make_checkpoint()
    own = tmp_path / f"acemath-registry-{os.getuid()}"
    own.mkdir(0o755)
    own.chmod(0o755)
    with pytest.raises(StorageError, match="remove it, or set TMPDIR"):
        publish(registry, source)
    own.chmod(0o700)
    for name, age_s in (("old", 25 * 3600), ("young", 3600)):
        (own / name / "version").mkdir(parents=True)
        os.utime(own / name, (time.time() - age_s,) * 2)
    ref = publish(registry, source)
    registry.verify(ref)
    assert [path.name for path in own.iterdir()] == ["young"]
    assert not list(tmp_path.glob("acemath-registry-*/*/version/*"))


def test_a_file_that_is_there_is_not_sent_again(registry: Registry, faults: Faults, make_checkpoint: Make) -> None:
    source = make_checkpoint()
    ref = publish(registry, source)
    manifest = str(registry._layout.version(ref) / "manifest.json")
    store_of(registry).bucket.delete(manifest)  # as if the publisher had been killed before it
    faults.seen.clear()
    heard = list[tuple[str, int, int]]()
    assert publish(registry, source, progress=lambda *step: heard.append(step)) == ref
    assert [path for method, path in faults.seen if method == "PUT" and "/models/pol/" in path] == [
        f"/{BUCKET}/{manifest}"
    ]
    assert [done == total for phase, done, total in heard if phase == "uploading"][-1]


@pytest.mark.parametrize("damaged", [False, True])
def test_an_object_that_lost_its_digest_is_hashed(registry: Registry, make_checkpoint: Make, damaged: bool) -> None:
    source = make_checkpoint()
    ref = publish(registry, source)
    bucket, key = store_of(registry).bucket, str(registry._layout.version(ref) / "model.safetensors")
    data = bytearray(bucket.get(key, 1 << 20)[0])
    data[-1] ^= damaged
    bucket.put(key, bytes(data))
    assert bucket.facts(key).sha256 is None
    if damaged:
        with pytest.raises(Conflict, match="is already there but damaged"):
            publish(registry, source)
    else:
        assert publish(registry, source) == ref


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


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("config.json", b"{}", RejectReason.SIZE_MISMATCH),
        ("config.json", None, RejectReason.FILE_MISSING),
        ("manifest.json", b"[]", RejectReason.MANIFEST_MALFORMED),
    ],
)
def test_what_is_damaged_in_the_bucket_is_not_copied(
    registry: Registry, make_checkpoint: Make, tmp_path: Path, name: str, data: bytes | None, reason: RejectReason
) -> None:
    ref = publish(registry, make_checkpoint())
    bucket, key = store_of(registry).bucket, str(registry._layout.version(ref) / name)
    bucket.delete(key) if data is None else bucket.put(key, data)
    for read in (registry.verify, lambda ref: registry.private_copy(ref, tmp_path / "cache")):
        with pytest.raises(VerificationError) as caught:
            read(ref)
        assert caught.value.reason is reason
    assert not list((tmp_path / "cache").glob("*/s*"))


def test_a_flipped_bit_is_found_on_download(registry: Registry, make_checkpoint: Make, tmp_path: Path) -> None:
    ref = publish(registry, make_checkpoint())
    bucket, key = store_of(registry).bucket, str(registry._layout.version(ref) / "model.safetensors")
    data = bytearray(bucket.get(key, 1 << 20)[0])
    data[-1] ^= 1
    bucket.put(key, bytes(data))
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(ref, tmp_path / "cache")
    assert caught.value.reason is RejectReason.CHECKSUM_MISMATCH and not list((tmp_path / "cache").glob("*/s*"))


def test_what_the_manifest_does_not_name_is_no_part_of_the_version(
    registry: Registry, make_checkpoint: Make, tmp_path: Path
) -> None:
    ref = publish(registry, make_checkpoint())
    store_of(registry).bucket.put(str(registry._layout.version(ref) / "evil.py"), b"import os")
    assert registry.verify(ref).ref == ref
    assert not (registry.private_copy(ref, tmp_path / "cache") / "evil.py").exists()


def test_a_signature_is_of_the_manifest_that_won(registry: Registry, make_checkpoint: Make, tmp_path: Path) -> None:
    key = write_key(tmp_path / "key")
    signer, trusted = SigningKey.read(key), TrustedKeys.read(key.with_suffix(".pub"))
    source = make_checkpoint()
    bare = publish(registry, source)
    trusting = Registry(registry.address, trusted=trusted)
    with pytest.raises(VerificationError, match="is not signed"):
        trusting.manifest(bare)
    registry.sign(bare, signer, by="me")
    signed = publish(registry, make_checkpoint(mark="signed"), signer=signer)
    for ref in (bare, signed):
        assert trusting.verify(ref).ref == ref and trusting.private_copy(ref, tmp_path / "cache").is_dir()


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
