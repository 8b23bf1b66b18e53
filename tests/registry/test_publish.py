import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from registry.faults import run_at_once
from registry.tiny import CANARIES, METADATA, SMALL, VOCABULARY, write_checkpoint

from acemath_registry import (
    Conflict,
    DiskFull,
    InvalidRequest,
    ModelKind,
    ModelRef,
    NotFound,
    PublishMetadata,
    Registry,
    RejectReason,
    StorageError,
    VerificationError,
)
from acemath_registry.stores import Disk
from acemath_registry.stores.staging import STALE_STAGING_S, sweep_staging


def staging(registry: Registry) -> list[str]:
    folder = registry.root / "staging"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_a_version_is_whole_readable_and_described(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint()
    os.chmod(source / "model.safetensors", 0o600)
    metadata = PublishMetadata(
        step=1200,
        licence="Apache-2.0",
        parent="base@s0-0123456789ab",
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        training={"seed": 1, "world_size": 2},
        metrics={"pass_at_1": 0.25},
        canary=CANARIES["policy"],
        tools={"transformers": "5.19.0"},
    )
    ref = registry.publish(source, name="pol", kind="policy", metadata=metadata)
    assert ref.name == "pol" and ref.version.startswith("s1200-")
    manifest = registry.verify(ref)
    assert {field: getattr(manifest, field) for field in PublishMetadata.model_fields} == dict(metadata)
    assert (manifest.kind, manifest.architecture, manifest.dtype) == (ModelKind.POLICY, "LlamaForCausalLM", "bfloat16")
    assert (manifest.tensors.count, manifest.tensors.parameters) == (11, 2 * VOCABULARY + 34)
    directory = registry.path(ref)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}
    assert staging(registry) == []


def test_the_same_content_is_the_same_version(
    registry: Registry, policy: ModelRef, make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = (registry.path(policy) / "manifest.json").read_bytes()
    with caplog.at_level(logging.WARNING):
        assert registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA) == policy
        assert not caplog.records
        other = METADATA.model_copy(update={"metrics": {"pass_at_1": 1.0}})
        assert registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=other) == policy
    assert "its manifest stands, the new metrics is not stored" in caplog.text
    assert (registry.path(policy) / "manifest.json").read_bytes() == before
    assert registry.versions() == [policy]


def test_a_published_version_can_be_published_again_elsewhere(
    registry: Registry, policy: ModelRef, tmp_path: Path
) -> None:
    elsewhere = Registry(tmp_path / "elsewhere")
    assert elsewhere.publish(registry.path(policy), name="pol", kind="policy", metadata=METADATA) == policy
    assert elsewhere.verify(policy).files == registry.verify(policy).files


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False), same=st.booleans(), byte=st.integers(0, 31))
def test_the_version_is_a_function_of_the_content(tmp_path: Path, random: Random, same: bool, byte: int) -> None:
    """Whatever the order in which files were made, their times and modes: the same bytes have the same version."""
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    first = write_checkpoint(root / "first")
    content = bytearray(SMALL["model.embed_tokens.weight"][2])
    content[byte] ^= 0 if same else 1
    tensors = {**SMALL, "model.embed_tokens.weight": ("BF16", [VOCABULARY, 2], bytes(content))}
    made = write_checkpoint(root / "made", tensors=tensors)
    second = root / "second"
    second.mkdir()
    for path in random.sample(sorted(made.iterdir()), len(list(made.iterdir()))):
        shutil.copyfile(path, second / path.name)
        os.utime(second / path.name, (random.randrange(10**9), random.randrange(10**9)))
        os.chmod(second / path.name, random.choice([0o600, 0o644, 0o755]))
    registry = Registry(root / "registry")
    refs = {registry.publish(source, name="m", kind="policy", metadata=METADATA) for source in (first, second)}
    assert len(refs) == (1 if same else 2)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "training_args.bin").write_bytes(b"\x80"), RejectReason.PICKLE),
        (lambda d: (d / "modeling_x.py").write_text(""), RejectReason.PYTHON_CODE),
        (lambda d: (d / ".gitattributes").write_text(""), RejectReason.HIDDEN_FILE),
        (lambda d: (d / "trainer_state.json").write_text("{}"), RejectReason.NAME_NOT_ALLOWED),
        (lambda d: (d / "checkpoint-5").mkdir(), RejectReason.NOT_A_FILE),
        (lambda d: (d / "LICENSE").symlink_to("config.json"), RejectReason.SYMLINK),
        (lambda d: edit_config(d, auto_map={}), RejectReason.AUTO_MAP),
        (lambda d: edit_config(d, architectures=["MistralForCausalLM"]), RejectReason.ARCHITECTURE),
        (lambda d: edit_config(d, architectures=["LlamaForSequenceClassification"]), RejectReason.WRONG_KIND),
        (lambda d: (d / "config.json").write_text("{"), RejectReason.CONFIG_MALFORMED),
        (lambda d: (d / "tokenizer.json").write_text("[]"), RejectReason.CONFIG_MALFORMED),
        (lambda d: (d / "tokenizer.json").unlink(), RejectReason.FILE_MISSING),
        (lambda d: (d / "tokenizer_config.json").unlink(), RejectReason.FILE_MISSING),
        (lambda d: (d / "model.safetensors").unlink(), RejectReason.FILE_MISSING),
        (lambda d: os.truncate(d / "model.safetensors", 150), RejectReason.TRUNCATED),
    ],
)
def test_what_is_not_published(
    registry: Registry, make_checkpoint: Callable[..., Path], damage: Callable[[Path], object], reason: RejectReason
) -> None:
    source = make_checkpoint()
    damage(source)
    with pytest.raises(VerificationError) as caught:
        registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    assert caught.value.reason is reason
    assert registry.versions() == [] and staging(registry) == []


def test_the_kind_is_checked_again_for_what_is_there(
    registry: Registry, policy: ModelRef, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(VerificationError) as caught:
        registry.publish(make_checkpoint(), name="pol", kind="reward", metadata=METADATA)
    assert caught.value.reason is RejectReason.WRONG_KIND


def test_wrong_arguments(registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint()
    with pytest.raises(InvalidRequest):
        registry.publish(source, name="../up", kind="policy", metadata=METADATA)
    with pytest.raises(InvalidRequest, match="policy or reward"):
        registry.publish(source, name="pol", kind="judge", metadata=METADATA)
    with pytest.raises(NotFound, match="absent"):
        registry.publish(tmp_path / "absent", name="pol", kind="policy", metadata=METADATA)
    for wrong in ({"step": -1}, {"licence": ""}, {"metrics": {"x": float("nan")}}, {"extra": 1}):
        with pytest.raises(ValidationError):
            PublishMetadata.model_validate({"step": 1, "licence": "MIT", **wrong})
    assert not registry.root.exists()


def test_a_damaged_version_is_not_covered_up(
    registry: Registry, policy: ModelRef, make_checkpoint: Callable[..., Path]
) -> None:
    (registry.path(policy) / "config.json").write_text("{}")
    with pytest.raises(Conflict, match=r"already there but damaged \(config.json.*move it out"):
        registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)
    shutil.move(registry.path(policy), registry.root / "damaged")
    assert registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA) == policy
    registry.verify(policy)


def test_a_collision_of_names_is_a_conflict(
    registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("publish", "verify"):
        monkeypatch.setattr(f"acemath_registry.{module}.version_of", lambda step, files: f"s{step}-000000000000")
    registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)
    with pytest.raises(Conflict, match="another step"):
        registry.publish(make_checkpoint(mark="other"), name="pol", kind="policy", metadata=METADATA)


def test_a_full_disk(registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(DiskFull):
        registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)
    assert staging(registry) == []


def test_a_registry_that_cannot_be_listed(
    registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(disk: Disk, folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Disk, "folders", refuse)
    with pytest.raises(StorageError, match="publishing pol failed: Permission denied"):
        registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)


def test_the_sweep_takes_the_dead_and_old_only(registry: Registry, policy: ModelRef) -> None:
    folder = registry.root / "staging"
    old = time.time() - STALE_STAGING_S - 60
    for name in ("dead-old", "dead-young", "stray"):
        (folder / name).mkdir()
    os.utime(folder / "dead-old", (old, old))
    (folder / "file").write_text("")
    sweep_staging(folder)
    assert sorted(staging(registry)) == ["dead-young", "file", "stray"]


def test_publishers_at_once_agree(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    same, other = make_checkpoint(), make_checkpoint(mark="other")

    def publish(number: int) -> ModelRef:
        return registry.publish(other if number == 0 else same, name="pol", kind="policy", metadata=METADATA)

    results = run_at_once(6, publish)
    assert len(set(results)) == 2 and len(set(results[1:])) == 1
    assert {str(ref) for ref in registry.versions()} == set(results)
    assert staging(registry) == []
    for ref in registry.versions():
        registry.verify(ref)


def test_progress_covers_both_phases(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    heard: list[tuple[str, int, int]] = []
    registry.publish(
        make_checkpoint(), name="pol", kind="policy", metadata=METADATA, progress=lambda *args: heard.append(args)
    )
    for phase in ("copying", "hashing"):
        done = [(done, total) for name, done, total in heard if name == phase]
        assert done == sorted(done) and done[0][0] == 0 and done[-1][0] == done[-1][1]
