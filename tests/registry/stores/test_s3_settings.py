"""Where a bucket is and who may ask it: addresses, endpoints, credentials, each wrong one in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.stores.conftest import BUCKET, store_of

from acemath_registry import (
    InvalidRequest,
    NotFound,
    Registry,
    StorageError,
)
from acemath_registry.stores import place_of
from acemath_registry.stores import s3 as s3_module
from acemath_registry.stores.objects import ObjectStore


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
