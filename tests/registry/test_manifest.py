import json
import subprocess
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry import FileEntry, Manifest, ModelRef, Registry, RejectReason, VerificationError
from acemath_registry.manifest import decode_manifest, encode_manifest, version_of

entries = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}\.json", fullmatch=True), st.binary(min_size=32, max_size=32), min_size=1, max_size=6
).map(lambda files: [FileEntry(path=path, size=1, sha256=digest.hex()) for path, digest in files.items()])


@given(entries, st.randoms(use_true_random=False), st.integers(0, 10**6))
def test_the_version_does_not_depend_on_order(files: list[FileEntry], random: Random, step: int) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)
    assert version_of(step, shuffled) == version_of(step, files)
    ModelRef("m", version_of(step, files))


@given(entries, st.data())
def test_every_change_of_content_or_name_changes_the_version(files: list[FileEntry], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(files) - 1))
    other = files[index].model_copy(update={"sha256": "0" * 64})
    renamed = files[index].model_copy(update={"path": "other.jinja"})
    for changed in (other, renamed):
        if changed != files[index]:
            assert version_of(0, [*files[:index], changed, *files[index + 1 :]]) != version_of(0, files)


def test_a_shell_computes_the_same_version(registry: Registry, policy: ModelRef) -> None:
    command = "ls | grep -vx -e manifest.json -e model.sig | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=registry.path(policy), capture_output=True, text=True, check=True)
    assert policy.version == f"s7-{printed.stdout[:12]}"


def test_unknown_keys_are_kept(registry: Registry, policy: ModelRef) -> None:
    manifest = registry.manifest(policy)
    newer = Manifest.model_validate({**manifest.model_dump(mode="json"), "gate": {"passed": True}})
    read = decode_manifest(encode_manifest(newer))
    assert read == newer
    assert read.model_dump()["gate"] == {"passed": True}


def test_round_trip(registry: Registry, policy: ModelRef) -> None:
    manifest = registry.manifest(policy)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert manifest.ref == policy
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "other"  # type: ignore[misc]


def test_every_flipped_bit_of_a_manifest_is_found(registry: Registry, policy: ModelRef) -> None:
    data = (registry.path(policy) / "manifest.json").read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(VerificationError):
            decode_manifest(bytes(flipped))


def test_a_future_schema_says_upgrade(registry: Registry, policy: ModelRef) -> None:
    path: Path = registry.path(policy) / "manifest.json"
    document = {**json.loads(path.read_text()), "schema_version": 2}
    with pytest.raises(VerificationError, match="upgrade") as caught:
        decode_manifest(json.dumps(document).encode())
    assert caught.value.reason is RejectReason.SCHEMA_UNSUPPORTED
