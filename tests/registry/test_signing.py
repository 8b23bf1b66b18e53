"""Signatures: what a key signed is used, whatever else is refused with its reason; and how a version gets one."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry.damage import with_manifest
from registry.faults import run_killed_at
from registry.keys import write_key
from registry.tiny import METADATA
from typer.testing import CliRunner, Result

from acemath_core.settings import SettingsError
from acemath_registry import (
    Conflict,
    InvalidRequest,
    ModelRef,
    PublishMetadata,
    Registry,
    RejectReason,
    SigningKey,
    TrustedKeys,
    VerificationError,
    configured_keys,
)
from acemath_registry.audit import AuditEvent
from acemath_registry.cli import app

R = RejectReason
Make = Callable[..., Path]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "ours.key")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_key(tmp_path / "theirs.key")


@pytest.fixture
def trusting(registry: Registry, key: Path) -> Registry:
    return Registry(registry.root, trusted=TrustedKeys.read(key.with_suffix(".pub")))


@pytest.fixture
def signed(registry: Registry, key: Path, make_checkpoint: Make) -> ModelRef:
    signer = SigningKey.read(key)
    return registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA, signer=signer)


def reason(call: Callable[[], object]) -> RejectReason:
    with pytest.raises(VerificationError) as caught:
        call()
    return caught.value.reason


def test_what_is_signed_is_used_and_what_is_not_is_refused(
    trusting: Registry, signed: ModelRef, make_checkpoint: Make, tmp_path: Path, key: Path
) -> None:
    assert trusting.verify(signed).ref == trusting.manifest(signed).ref == signed
    copy = trusting.private_copy(signed, tmp_path / "cache")
    assert (copy / "model.sig").read_bytes() == (trusting.path(signed) / "model.sig").read_bytes()
    assert trusting.manifest(signed, copy).ref == signed
    bare = trusting.publish(make_checkpoint(mark="bare"), name="pol", kind="policy", metadata=METADATA)
    for read in (trusting.verify, trusting.manifest, lambda ref: trusting.private_copy(ref, tmp_path / "cache")):
        assert reason(lambda read=read: read(bare)) is R.SIGNATURE_MISSING
    assert not (tmp_path / "cache" / "pol" / bare.version).exists()
    assert Registry(trusting.root).verify(bare).ref == bare
    trusting.sign(bare, SigningKey.read(key), by="ann")
    assert trusting.private_copy(bare, tmp_path / "cache").is_dir()
    assert (trusting.log()[-1].event, trusting.log()[-1].by) == (AuditEvent.SIGN, "ann")


def edit(change: dict[str, Any]) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        path = directory / "model.sig"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: (d / "model.sig").unlink(), R.SIGNATURE_MISSING),
        (lambda d: (d / "model.sig").write_text("{"), R.SIGNATURE_MALFORMED),
        (edit({"algorithm": "rsa"}), R.SIGNATURE_MALFORMED),
        (edit({"schema_version": 2}), R.SIGNATURE_MALFORMED),
        (edit({"signature": "not base64!"}), R.SIGNATURE_MALFORMED),
        (edit({"signature": 7}), R.SIGNATURE_MALFORMED),
        (edit({"signature": ""}), R.SIGNATURE_WRONG),
        (edit({"signature": base64.b64encode(bytes(64)).decode()}), R.SIGNATURE_WRONG),
        (edit({"key": "0" * 16}), R.SIGNATURE_UNTRUSTED),
        (with_manifest(lambda m: m.update(metrics={"rm@8": 1.0})), R.SIGNATURE_WRONG),
        (with_manifest(lambda m: m.update(canary=None, step=8)), R.SIGNATURE_WRONG),
    ],
)
def test_each_fault_has_its_reason(
    damage: Callable[[Path], object],
    expected: RejectReason,
    trusting: Registry,
    signed: ModelRef,
    tmp_path: Path,
) -> None:
    damage(trusting.path(signed))
    assert reason(lambda: trusting.manifest(signed)) is expected
    assert reason(lambda: trusting.private_copy(signed, tmp_path / "cache")) is expected
    assert not (tmp_path / "cache").exists()


def test_a_symlink_is_no_signature(trusting: Registry, signed: ModelRef, tmp_path: Path) -> None:
    path = trusting.path(signed) / "model.sig"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert reason(lambda: trusting.manifest(signed)) is R.SYMLINK


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_every_bit_of_a_signature_counts(position: int, bit: int, trusting: Registry, signed: ModelRef) -> None:
    path = trusting.path(signed) / "model.sig"
    good = path.read_bytes()
    document = json.loads(good)
    signature = bytearray(base64.b64decode(document["signature"]))
    signature[position] ^= 1 << bit
    path.write_text(json.dumps(document | {"signature": base64.b64encode(signature).decode()}))
    assert reason(lambda: trusting.manifest(signed)) is R.SIGNATURE_WRONG
    path.write_bytes(good)
    assert trusting.manifest(signed).ref == signed


def test_a_signature_of_another_version_is_wrong(
    trusting: Registry, signed: ModelRef, key: Path, make_checkpoint: Make
) -> None:
    second = trusting.publish(
        make_checkpoint(mark="2"), name="pol", kind="policy", metadata=METADATA, signer=SigningKey.read(key)
    )
    (trusting.path(second) / "model.sig").write_bytes((trusting.path(signed) / "model.sig").read_bytes())
    assert reason(lambda: trusting.manifest(second)) is R.SIGNATURE_WRONG


def test_keys_are_changed_by_trusting_both_and_signing_again(
    registry: Registry, signed: ModelRef, key: Path, other: Path, tmp_path: Path
) -> None:
    new = Registry(registry.root, trusted=TrustedKeys.read(other.with_suffix(".pub")))
    assert reason(lambda: new.manifest(signed)) is R.SIGNATURE_UNTRUSTED
    both = tmp_path / "both.pub"
    both.write_bytes(b"ours\n" + key.with_suffix(".pub").read_bytes() + other.with_suffix(".pub").read_bytes())
    overlap = Registry(registry.root, trusted=TrustedKeys.read(both))
    cached = overlap.private_copy(signed, tmp_path / "cache")
    before = (cached / "model.sig").read_bytes()
    registry.sign(signed, SigningKey.read(other), by="ann")
    assert new.private_copy(signed, tmp_path / "cache") == cached  # the copy with the old signature is made again
    assert (cached / "model.sig").read_bytes() != before
    assert overlap.manifest(signed).ref == signed


def test_signing_checks_every_byte_first(registry: Registry, policy: ModelRef, key: Path) -> None:
    weights = registry.path(policy) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    assert reason(lambda: registry.sign(policy, SigningKey.read(key), by="ann")) is R.CHECKSUM_MISMATCH
    assert not (registry.path(policy) / "model.sig").exists() and not list((registry.root / "staging").iterdir())


def test_what_was_published_before_is_signed_only_where_it_says_the_same(
    registry: Registry, trusting: Registry, make_checkpoint: Make, key: Path
) -> None:
    source, signer = make_checkpoint(), SigningKey.read(key)
    ref = registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    other = PublishMetadata(step=7, licence="Apache-2.0", canary={"token_ids": [1]})
    with pytest.raises(Conflict, match="with another canary; look at it"):
        registry.publish(source, name="pol", kind="policy", metadata=other, signer=signer)
    assert reason(lambda: trusting.manifest(ref)) is R.SIGNATURE_MISSING
    assert registry.publish(source, name="pol", kind="policy", metadata=METADATA, signer=signer) == ref
    assert trusting.verify(ref).ref == ref
    signature = (registry.path(ref) / "model.sig").stat().st_ino
    assert registry.publish(source, name="pol", kind="policy", metadata=METADATA, signer=signer) == ref
    assert (registry.path(ref) / "model.sig").stat().st_ino == signature


def test_killed_at_every_step_a_version_is_signed_or_not_there(
    registry: Registry, signed: ModelRef, key: Path, other: Path, tmp_path: Path
) -> None:
    """A version that is signed again carries one signature or the other, whole, wherever the signer was killed."""
    both, steps = tmp_path / "both.pub", 0
    both.write_bytes(key.with_suffix(".pub").read_bytes() + other.with_suffix(".pub").read_bytes())
    reader = Registry(registry.root, trusted=TrustedKeys.read(both))
    while run_killed_at(steps, lambda: registry.sign(signed, SigningKey.read(other), by="ann")):
        assert reader.verify(signed).ref == signed
        steps += 4
    assert steps > 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must hold Ed25519 public keys"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
    ],
)
def test_key_files_that_cannot_be_used(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.pub"
    with pytest.raises(InvalidRequest, match="name a readable PEM file"):
        TrustedKeys.read(path)
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=said):
        TrustedKeys.read(path)
    with pytest.raises(SettingsError, match="signature_keys_file: key file"):
        configured_keys(path)
    assert configured_keys(None) is None


def test_another_kind_of_key_is_refused(tmp_path: Path, key: Path) -> None:
    curve = write_key(tmp_path / "curve.key", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(InvalidRequest, match="another kind of key"):
        SigningKey.read(curve)
    with pytest.raises(InvalidRequest, match="Ed25519 public keys and nothing else"):
        TrustedKeys.read(curve.with_suffix(".pub"))
    with pytest.raises(InvalidRequest, match="no PEM file of a private key"):
        SigningKey.read(write_public_as_private(key))
    key.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        SigningKey.read(key)


def write_public_as_private(key: Path) -> Path:
    path = key.with_name("public-as-private.key")
    path.write_bytes(key.with_suffix(".pub").read_bytes())
    path.chmod(0o600)
    return path


def test_the_private_key_is_not_shown(key: Path) -> None:
    shown = repr(SigningKey.read(key))
    assert "PRIVATE" not in shown and SigningKey.read(key).id in shown


def run(registry: Registry, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--root", str(registry.root)])


def test_the_commands(registry: Registry, key: Path, make_checkpoint: Make, policy: ModelRef, reward: ModelRef) -> None:
    public = key.with_suffix(".pub")
    said = run(
        registry, "publish", make_checkpoint(mark="s"), "--name", "pol", "--kind", "policy", "--step", "1",
        "--licence", "MIT", "--sign-key", key, "--json",
    )  # fmt: skip
    ref = json.loads(said.stdout)["model"]
    assert json.loads(run(registry, "verify", ref, "--keys", public, "--json").stdout)["verified"][0]["signed"] is True
    release = registry.create_release(policy, reward)
    refused = run(registry, "verify", release.id, "--keys", public, "--json")
    assert refused.exit_code == 1 and json.loads(refused.stderr)["error"]["reason"] == "signature_missing"
    document = json.loads(run(registry, "sign", release.id, "--sign-key", key, "--by", "ann", "--json").stdout)
    assert document == {"signed": [str(policy), str(reward)], "key": SigningKey.read(key).id}
    assert run(registry, "verify", release.id, "--keys", public).exit_code == 0
    assert run(registry, "verify", release.id, "--json").exit_code == 0
    assert run(registry, "sign", release.id, "--sign-key", public).exit_code == 1


def test_keys_that_openssl_makes(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    made = tmp_path / "openssl.key"
    make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(made)]
    try:
        subprocess.run(make, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    public = subprocess.run(["openssl", "pkey", "-in", str(made), "-pubout"], check=True, capture_output=True).stdout
    made.chmod(0o600)
    made.with_suffix(".pub").write_bytes(public)
    registry.sign(policy, SigningKey.read(made), by="ann")
    keys = TrustedKeys.read(made.with_suffix(".pub"))
    assert Registry(registry.root, trusted=keys).verify(policy).ref == policy


def test_without_the_library_it_says_what_to_install(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(InvalidRequest, match=r"install acemath-registry\[signing\]"):
        SigningKey.read(key)
