"""Versions in a bucket: publishers that were killed or meet, what is damaged, what is signed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.keys import write_key
from registry.stores.conftest import BUCKET, App, Faults, Make, publish, refuse, store_of

from acemath_core.errors import ServiceError
from acemath_registry import (
    Conflict,
    Registry,
    RejectReason,
    SigningKey,
    StorageError,
    TrustedKeys,
    VerificationError,
)


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
