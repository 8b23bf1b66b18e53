"""A version that is stored as an adapter: published thin, copied whole, and nothing else than its merged model."""

import shutil
import struct
import time
from pathlib import Path

import pytest
from registry.adapters.tiny import (
    ALPHA,
    LAYERS,
    RANK,
    adapter_tensors,
    base_tensors,
    exact,
    publish_base,
    publish_on,
    write_adapter,
)
from registry.damage import flip
from registry.faults import run_killed_at
from registry.keys import make_keys
from registry.tiny import METADATA, read_safetensors

from acemath_registry import (
    Conflict,
    InvalidRequest,
    ModelRef,
    NotFound,
    Registry,
    RejectReason,
    VerificationError,
)
from acemath_registry.collect import Action, Retention, collect
from acemath_registry.documents import sha256_hex
from acemath_registry.layout import Layout

R = RejectReason
WEIGHTS = "adapter_model.safetensors"


def floats(dtype: str, data: bytes) -> list[float]:
    if dtype == "F32":
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2)]


@pytest.mark.parametrize("shards", [False, True])
def test_published_thin_and_copied_whole(registry: Registry, tmp_path: Path, shards: bool) -> None:
    base = publish_base(registry, tmp_path / "base", shards=shards)
    ref = publish_on(registry, write_adapter(tmp_path / "adapter"), base)
    manifest, directory = registry.verify(ref), registry.path(ref)
    stored = {path.name for path in directory.iterdir()}
    assert {"adapter_config.json", WEIGHTS, "config.json", "tokenizer.json", "chat_template.jinja"} <= stored
    assert not any(name.startswith("model") and name.endswith(".safetensors") for name in stored)
    assert manifest.adapter is not None and manifest.adapter.base_ref == base
    assert manifest.stored_size == sum((directory / name).stat().st_size for name in stored - {"manifest.json"})
    copy = registry.private_copy(ref, tmp_path / "cache")
    assert registry.verify(ref, copy) == manifest
    assert {path.name for path in copy.iterdir()} == {entry.path for entry in manifest.files} | {"manifest.json"}
    assert (copy / "README.md").read_text() == "an adapter"
    merged = {name: one for file in copy.glob("*.safetensors") for name, one in read_safetensors(file).items()}
    matrices, originals = adapter_tensors(), base_tensors()
    for name, (dtype, shape, data) in originals.items():
        if name.removesuffix(".weight") not in LAYERS:
            assert merged[name] == (dtype, shape, data)
            continue
        up, down = (
            floats("F32", matrices[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"][2])
            for part in "BA"
        )
        wanted = exact(floats(dtype, data), up, down, shape[1], ALPHA / RANK)
        found = floats(*(merged[name][0], merged[name][2]))
        assert merged[name][:2] == (dtype, shape) and found != floats(dtype, data)
        assert all(abs(a - b) <= abs(b) / 256 for a, b in zip(found, wanted, strict=True))


def test_the_same_again_is_the_same_version_thin_or_whole(
    registry: Registry, base: ModelRef, adapter: ModelRef, tmp_path: Path
) -> None:
    manifest = (registry.path(adapter) / "manifest.json").read_bytes()
    assert publish_on(registry, tmp_path / "adapter", base) == adapter
    whole = registry.private_copy(adapter, tmp_path / "cache")
    assert registry.publish(whole, name="pol", kind="policy", metadata=METADATA) == adapter
    assert (registry.path(adapter) / "manifest.json").read_bytes() == manifest
    elsewhere = Registry(tmp_path / "elsewhere")
    first = elsewhere.publish(whole, name="pol", kind="policy", metadata=METADATA)
    publish_base(elsewhere, tmp_path / "base-again")
    assert publish_on(elsewhere, tmp_path / "adapter", base) == first == adapter
    assert elsewhere.manifest(first).adapter is None, "what was there first stands"


def test_a_tokenizer_comes_as_a_whole(registry: Registry, base: ModelRef, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter")
    own = {
        "tokenizer.json": '{"model": {"vocab": {"another": 1}}}',
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "{{ messages[-1] }}",
    }
    lacking = [(R.FILE_MISSING, "tokenizer_config.json"), (R.CHAT_TEMPLATE, "chat_template.jinja")]
    for (name, text), lacks in zip(own.items(), lacking, strict=False):
        (source / name).write_text(text)
        with pytest.raises(VerificationError) as caught:  # the base's is not taken for another tokenizer
            publish_on(registry, source, base)
        assert (caught.value.reason, caught.value.file) == lacks
    (source / "chat_template.jinja").write_text(own["chat_template.jinja"])
    ref = publish_on(registry, source, base)
    assert {name: (registry.path(ref) / name).read_text() for name in own} == own
    assert registry.verify(ref).compatibility.tokenizer_sha256 == sha256_hex((source / "tokenizer.json").read_bytes())


def test_scaling_by_the_root_of_the_rank(registry: Registry, base: ModelRef, adapter: ModelRef, tmp_path: Path) -> None:
    def same_scaling(config: dict[str, object], tensors: object) -> None:
        config.update(use_rslora=True, lora_alpha=ALPHA / RANK * 2**0.5)

    copy, other = (
        registry.private_copy(ref, tmp_path / "cache")
        for ref in (adapter, publish_on(registry, write_adapter(tmp_path / "root", same_scaling), base))
    )
    assert (copy / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_what_may_not_lie_beside_an_adapter(registry: Registry, base: ModelRef, tmp_path: Path) -> None:
    for number, (name, reason) in enumerate(
        {
            "config.json": R.NAME_NOT_ALLOWED,
            "model.safetensors": R.NAME_NOT_ALLOWED,
            "training_args.bin": R.PICKLE,
            "custom.py": R.PYTHON_CODE,
        }.items()
    ):
        source = write_adapter(tmp_path / f"adapter-{number}")
        (source / name).write_text("{}")
        with pytest.raises(VerificationError) as caught:
            publish_on(registry, source, base)
        assert (caught.value.reason, caught.value.file) == (reason, name)
    (source / name).unlink()
    (source / WEIGHTS).unlink()
    with pytest.raises(VerificationError) as caught:
        publish_on(registry, source, base)
    assert (caught.value.reason, caught.value.file) == (R.FILE_MISSING, WEIGHTS)


def test_which_base(registry: Registry, base: ModelRef, adapter: ModelRef, tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    with pytest.raises(NotFound, match="s7-000000000000"):
        publish_on(registry, source, ModelRef("base", "s7-000000000000"))
    with pytest.raises(InvalidRequest, match=str(base)):
        publish_on(registry, source, adapter)
    with pytest.raises(VerificationError) as caught:
        registry.publish(source, name="pol", kind="reward", metadata=METADATA, adapter_of=base)
    assert caught.value.reason is R.WRONG_KIND


def test_a_copy_goes_on_without_its_base(registry: Registry, base: ModelRef, adapter: ModelRef, tmp_path: Path) -> None:
    copy = registry.private_copy(adapter, tmp_path / "cache")
    shutil.rmtree(registry.path(base))
    assert registry.private_copy(adapter, tmp_path / "cache") == copy
    with pytest.raises(Conflict, match="base_missing"):
        registry.publish(copy, name="pol", kind="policy", metadata=METADATA)


def test_a_signature_covers_adapter_and_base(registry: Registry, base: ModelRef, tmp_path: Path) -> None:
    ours, theirs = make_keys(tmp_path)
    trusting = Registry(registry.root, trusted=ours.trusted())
    source = write_adapter(tmp_path / "adapter")
    ref = publish_on(registry, source, base, signer=theirs)
    with pytest.raises(VerificationError) as caught:
        trusting.private_copy(ref, tmp_path / "cache")
    assert caught.value.reason is R.SIGNATURE_UNTRUSTED
    trusting.sign(ref, ours, by="ann")
    assert trusting.verify(ref, trusting.private_copy(ref, tmp_path / "cache")).ref == ref, "the base is not signed"
    flip(registry.path(ref) / WEIGHTS)
    with pytest.raises(VerificationError) as caught:
        registry.sign(ref, ours, by="ann")
    assert caught.value.reason is R.CHECKSUM_MISMATCH


def test_a_base_stays_as_long_as_its_adapter(registry: Registry, base: ModelRef, adapter: ModelRef) -> None:
    layout, ahead = Layout(registry.root), 0.0

    def gc() -> dict[ModelRef, Action]:
        nonlocal ahead
        ahead += 60.0
        retention = Retention(newest=0, age_s=0.0, grace_s=10.0)
        found = collect(layout, retention, by="gc", apply=True, now=lambda: time.time() + ahead)
        return {verdict.ref: verdict.action for verdict in found}

    assert gc() == {base: Action.KEEP, adapter: Action.MARK}
    flip(registry.path(adapter) / "manifest.json")
    with pytest.raises(VerificationError):
        gc()  # which base it needs is not known
    flip(registry.path(adapter) / "manifest.json")
    assert gc() == {base: Action.KEEP, adapter: Action.REMOVE}
    assert gc() == {base: Action.MARK}
    assert gc() == {base: Action.REMOVE} and registry.versions() == []


def test_killed_at_every_eighth_step(registry: Registry, base: ModelRef, tmp_path: Path) -> None:
    source, step, killed = write_adapter(tmp_path / "adapter"), 0, True
    while killed:
        killed = run_killed_at(step, lambda: publish_on(registry, source, base))
        for ref in registry.versions():
            registry.verify(ref)
        step += 8
    assert step > 40
    (ref,) = set(registry.versions()) - {base}
    step, killed = 0, True
    while killed:
        cache = tmp_path / f"cache-{step}"
        killed = run_killed_at(step, lambda cache=cache: registry.private_copy(ref, cache))
        registry.verify(ref, registry.private_copy(ref, cache))
        step += 8
    assert step > 24
