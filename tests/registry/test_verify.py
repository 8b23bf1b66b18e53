"""The fault matrix: each way a version can be wrong has its own reason, and names its file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.damage import append, flip, list_another, replace_by_link, truncate, with_manifest, with_tensors

from acemath_registry import ModelRef, NotFound, PublishMetadata, Registry, RejectReason, VerificationError
from acemath_registry.documents import sha256_hex
from acemath_registry.manifest import FileEntry, version_of

WEIGHTS, TEMPLATE, MANIFEST = "model.safetensors", "chat_template.jinja", "manifest.json"
R = RejectReason


MATRIX: list[tuple[str, Callable[[Path], object], R, str | None]] = [
    ("truncated weights", lambda d: truncate(d / WEIGHTS, 120), R.TRUNCATED, WEIGHTS),
    ("weights cut by one byte", lambda d: truncate(d / WEIGHTS, -1), R.TRUNCATED, WEIGHTS),
    ("empty weights", lambda d: truncate(d / WEIGHTS, 0), R.TRUNCATED, WEIGHTS),
    ("bytes after the weights", lambda d: append(d / WEIGHTS), R.HEADER_MALFORMED, WEIGHTS),
    ("a bit of the weights' data", lambda d: flip(d / WEIGHTS), R.CHECKSUM_MISMATCH, WEIGHTS),
    ("a bit of the weights' header", lambda d: flip(d / WEIGHTS, 8), R.HEADER_MALFORMED, WEIGHTS),
    ("a bit of the config", lambda d: flip(d / "config.json"), R.CHECKSUM_MISMATCH, "config.json"),
    ("a bit of the tokenizer", lambda d: flip(d / "tokenizer.json"), R.CHECKSUM_MISMATCH, "tokenizer.json"),
    ("a bit of the template", lambda d: flip(d / TEMPLATE), R.CHECKSUM_MISMATCH, TEMPLATE),
    ("truncated tokenizer", lambda d: truncate(d / "tokenizer.json", 3), R.SIZE_MISMATCH, "tokenizer.json"),
    ("longer config", lambda d: append(d / "config.json"), R.SIZE_MISMATCH, "config.json"),
    ("no tokenizer", lambda d: (d / "tokenizer.json").unlink(), R.FILE_MISSING, "tokenizer.json"),
    ("no weights", lambda d: (d / WEIGHTS).unlink(), R.FILE_MISSING, WEIGHTS),
    ("one file more", lambda d: (d / "vocab.json").write_text("{}"), R.FILE_EXTRA, "vocab.json"),
    ("a pickle", lambda d: (d / "training_args.bin").write_bytes(b"\x80\x04N."), R.PICKLE, "training_args.bin"),
    ("code", lambda d: (d / "modeling_x.py").write_text("1"), R.PYTHON_CODE, "modeling_x.py"),
    ("a hidden file", lambda d: (d / ".cache").write_text("1"), R.HIDDEN_FILE, ".cache"),
    ("an unknown file", lambda d: (d / "notes.txt").write_text("1"), R.NAME_NOT_ALLOWED, "notes.txt"),
    ("a folder", lambda d: (d / "original").mkdir(), R.NOT_A_FILE, "original"),
    ("a link for the config", replace_by_link("config.json"), R.SYMLINK, "config.json"),
    ("a link for the manifest", replace_by_link(MANIFEST), R.SYMLINK, MANIFEST),
    ("a tensor more", with_tensors(lambda t: t.update(x=("F32", [1], b"1234"))), R.TENSOR_NAMES, None),
    ("a tensor less", with_tensors(lambda t: t.popitem()), R.TENSOR_NAMES, None),
    ("a tensor renamed", with_tensors(lambda t: t.update(y=t.popitem()[1])), R.TENSOR_NAMES, None),
    (
        "another shape",
        with_tensors(lambda t: t.update({"model.norm.weight": ("BF16", [2, 1], b"1234")})),
        R.TENSOR_SHAPES,
        None,
    ),
    (
        "another dtype of the same size",
        with_tensors(lambda t: t.update({"model.norm.weight": ("F16", [2], b"1234")})),
        R.TENSOR_DTYPES,
        None,
    ),
    (
        "another dtype and size",
        with_tensors(lambda t: t.update({"model.norm.weight": ("F32", [2], b"12345678")})),
        R.TENSOR_DTYPES,
        None,
    ),
    ("no manifest", lambda d: (d / MANIFEST).unlink(), R.MANIFEST_MISSING, MANIFEST),
    ("a manifest cut", lambda d: truncate(d / MANIFEST, 99), R.MANIFEST_MALFORMED, MANIFEST),
    ("a manifest that is a list", lambda d: (d / MANIFEST).write_text("[]"), R.MANIFEST_MALFORMED, MANIFEST),
    (
        "an edited manifest",
        with_manifest(lambda m: m["metrics"].update(pass_at_1=1.0), sealed=False),
        R.MANIFEST_EDITED,
        MANIFEST,
    ),
    ("another schema", with_manifest(lambda m: m.update(schema_version=9)), R.SCHEMA_UNSUPPORTED, MANIFEST),
    ("a missing field", with_manifest(lambda m: m.pop("dtype")), R.MANIFEST_MALFORMED, MANIFEST),
    ("a wrong digest", with_manifest(lambda m: m["files"][0].update(sha256="0" * 64)), R.VERSION_MISMATCH, MANIFEST),
    ("a file unlisted", with_manifest(lambda m: m["files"].pop()), R.VERSION_MISMATCH, MANIFEST),
    ("a wrong size", with_manifest(lambda m: m["files"][0].update(size=1)), R.SIZE_MISMATCH, TEMPLATE),
    ("another name", with_manifest(lambda m: m.update(name="other")), R.MISPLACED, MANIFEST),
    ("another version", with_manifest(lambda m: m.update(version="s7-000000000000")), R.MISPLACED, MANIFEST),
    ("a path upwards", list_another("../../etc/passwd"), R.PATH_TRAVERSAL, MANIFEST),
    ("an absolute path", list_another("/etc/passwd"), R.PATH_TRAVERSAL, MANIFEST),
    ("a path of two dots", list_another(".."), R.PATH_TRAVERSAL, MANIFEST),
    ("another kind", with_manifest(lambda m: m.update(kind="reward")), R.METADATA_MISMATCH, MANIFEST),
    ("another dtype said", with_manifest(lambda m: m.update(dtype="float32")), R.METADATA_MISMATCH, MANIFEST),
    (
        "another vocabulary said",
        with_manifest(lambda m: m["compatibility"].update(vocab_size=9)),
        R.METADATA_MISMATCH,
        MANIFEST,
    ),
]


@pytest.mark.parametrize(("damage", "reason", "file"), [case[1:] for case in MATRIX], ids=[case[0] for case in MATRIX])
def test_each_fault_has_its_reason(
    registry: Registry,
    policy: ModelRef,
    tmp_path: Path,
    damage: Callable[[Path], object],
    reason: RejectReason,
    file: str | None,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(registry.path(policy), copy)
    damage(copy)
    with pytest.raises(VerificationError) as caught:
        registry.verify(policy, copy)
    error = caught.value
    assert (error.reason, error.file) == (reason, file), error.message
    assert error.detail and reason.value in error.message
    assert error.status == 409 and error.should_retry is False
    registry.verify(policy)


def test_a_whole_version(registry: Registry, policy: ModelRef) -> None:
    manifest = registry.verify(policy)
    assert manifest == registry.manifest(policy)
    assert [entry.path for entry in manifest.files] == sorted(entry.path for entry in manifest.files)


def test_a_signature_may_lie_beside_the_manifest(registry: Registry, policy: ModelRef) -> None:
    (registry.path(policy) / "model.sig").write_text("{}")
    registry.verify(policy)


def test_what_is_not_there(registry: Registry, policy: ModelRef) -> None:
    absent = ModelRef("pol", "s7-000000000000")
    with pytest.raises(NotFound, match="s7-000000000000"):
        registry.verify(absent)
    with pytest.raises(NotFound):
        registry.manifest(absent)


def test_a_linked_directory_is_no_version(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(registry.path(policy))
    with pytest.raises(VerificationError) as caught:
        registry.verify(policy, tmp_path / "link")
    assert caught.value.reason is RejectReason.SYMLINK


def test_a_sealed_edit_is_found_through_the_release(registry: Registry, policy: ModelRef, reward: ModelRef) -> None:
    """Without a signature, metrics and canary are only as trustworthy as the release that names the manifest."""
    member = registry.create_release(policy, reward).policy
    registry.verify(policy, manifest_sha256=member.manifest_sha256)
    with_manifest(lambda m: m["metrics"].update(pass_at_1=1.0))(registry.path(policy))
    registry.verify(policy)
    with pytest.raises(VerificationError) as caught:
        registry.verify(policy, manifest_sha256=member.manifest_sha256)
    assert caught.value.reason is RejectReason.MANIFEST_EDITED


def test_every_byte_counts(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    """A flipped bit anywhere in any file of a sharded version is found."""
    metadata = PublishMetadata(step=1, licence="MIT")
    ref = registry.publish(make_checkpoint(shards=True), name="sharded", kind="policy", metadata=metadata)
    for path in sorted(registry.path(ref).iterdir()):
        whole = path.read_bytes()
        for position in range(0, len(whole), 7):
            flip(path, position)
            with pytest.raises(VerificationError):
                registry.verify(ref)
            path.write_bytes(whole)
    registry.verify(ref)


def test_a_manifest_made_to_fit_may_still_not_list_a_pickle(
    registry: Registry, policy: ModelRef, tmp_path: Path
) -> None:
    """Whoever writes a whole version by hand, with a fitting name and seal, gets no further than the publisher."""
    copy = tmp_path / "copy"
    shutil.copytree(registry.path(policy), copy)
    (copy / "training_args.bin").write_bytes(b"N.")
    entry = FileEntry(path="training_args.bin", size=2, sha256=sha256_hex(b"N."))
    forged = ModelRef(policy.name, version_of(7, [*registry.manifest(policy).files, entry]))
    with_manifest(lambda m: m.update(version=forged.version, files=[*m["files"], entry.model_dump()]))(copy)
    with pytest.raises(VerificationError) as caught:
        registry.verify(forged, copy)
    assert caught.value.reason is RejectReason.PICKLE
    (copy / "training_args.bin").unlink()
    with pytest.raises(VerificationError) as caught:
        registry.verify(forged, copy)
    assert (caught.value.reason, caught.value.file) == (RejectReason.PICKLE, "manifest.json")


def test_a_manifest_may_not_list_a_file_twice(registry: Registry, policy: ModelRef, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(registry.path(policy), copy)
    files = registry.manifest(policy).files
    forged = ModelRef(policy.name, version_of(7, [*files, files[0]]))
    with_manifest(lambda m: m.update(version=forged.version, files=[*m["files"], m["files"][0]]))(copy)
    with pytest.raises(VerificationError, match="twice") as caught:
        registry.verify(forged, copy)
    assert caught.value.reason is RejectReason.MANIFEST_MALFORMED


def test_progress_reaches_the_end(registry: Registry, policy: ModelRef) -> None:
    heard: list[tuple[str, int, int]] = []
    manifest = registry.verify(policy, progress=lambda *args: heard.append(args))
    assert heard[0] == ("hashing", 0, manifest.size)
    assert ("hashing", manifest.size, manifest.size) in heard
    phase, done, total = heard[-1]
    assert phase == "checking numbers" and 0 < done == total
