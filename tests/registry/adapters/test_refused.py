"""What is not published, and what is not used: each fault has its reason and names its file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.adapters.tiny import publish_on, write_adapter
from registry.damage import flip
from registry.tiny import VOCABULARY

from acemath_registry import ModelRef, PublishMetadata, Registry, RejectReason, VerificationError
from acemath_registry.adapters import publish as publishing

R = RejectReason
WEIGHTS = "adapter_model.safetensors"


def lora(part: str, layer: str = "model.layers.0.self_attn.q_proj") -> str:
    return f"base_model.model.{layer}.lora_{part}.weight"


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda c, t: c.update(use_dora=True), R.ADAPTER_UNSUPPORTED, "use_dora"),
        (lambda c, t: c.update(rank_pattern={"q_proj": 4}), R.ADAPTER_UNSUPPORTED, "rank_pattern"),
        (lambda c, t: c.update(alpha_pattern={"q_proj": 4}), R.ADAPTER_UNSUPPORTED, "alpha_pattern"),
        (lambda c, t: c.update(modules_to_save=["score"]), R.ADAPTER_UNSUPPORTED, "modules_to_save"),
        (lambda c, t: c.update(bias="all"), R.ADAPTER_UNSUPPORTED, "bias"),
        (lambda c, t: c.update(fan_in_fan_out=True), R.ADAPTER_UNSUPPORTED, "fan_in_fan_out"),
        (lambda c, t: c.update(layers_to_transform=[0]), R.ADAPTER_UNSUPPORTED, "layers_to_transform"),
        (lambda c, t: c.update(init_lora_weights="pissa"), R.ADAPTER_UNSUPPORTED, "init_lora_weights"),
        (lambda c, t: c.update(peft_type="IA3"), R.ADAPTER_UNSUPPORTED, "peft_type"),
        (lambda c, t: c.update(target_modules="all-linear"), R.ADAPTER_UNSUPPORTED, "target_modules"),
        (lambda c, t: c.update(of_tomorrow=7), R.ADAPTER_UNSUPPORTED, "of_tomorrow"),
        (lambda c, t: c.pop("peft_type"), R.ADAPTER_MALFORMED, "peft_type"),
        (lambda c, t: c.update(r=0), R.ADAPTER_MALFORMED, "r is 0"),
        (lambda c, t: c.update(r=True), R.ADAPTER_MALFORMED, "r is True"),
        (lambda c, t: c.update(lora_alpha="3"), R.ADAPTER_MALFORMED, "lora_alpha"),
        (lambda c, t: c.update(r=3), R.ADAPTER_MISFIT, "asks for"),
        (lambda c, t: c["target_modules"].append("k_proj"), R.ADAPTER_MISFIT, "no matrices for model.layers.0"),
        (lambda c, t: c["target_modules"].append("c_proj"), R.ADAPTER_MISFIT, "no layer c_proj"),
        (lambda c, t: c["target_modules"].pop(), R.ADAPTER_MISFIT, "down_proj is not a layer"),
        (lambda c, t: t.pop(lora("A")), R.ADAPTER_MISFIT, "no lora_A"),
        (lambda c, t: (t.pop(lora("A")), t.pop(lora("B"))), R.ADAPTER_MISFIT, "no matrices"),
        (lambda c, t: t.update({lora("A"): ("F32", [2, 2], bytes(16))}), R.ADAPTER_MISFIT, "shape"),
        (lambda c, t: t.update({lora("A"): ("F64", [2, 4], bytes(64))}), R.ADAPTER_MISFIT, "F64"),
        (
            lambda c, t: t.update({lora("A", "model.layers.7.mlp.up_proj"): t.pop(lora("A"))}),
            R.ADAPTER_MISFIT,
            "layers.7",
        ),
        (
            lambda c, t: t.update({lora("A", "model.embed_tokens"): ("F32", [2, 2], bytes(16))}),
            R.ADAPTER_UNSUPPORTED,
            "embed",
        ),
        (
            lambda c, t: t.update({"base_model.model.score.weight": ("F32", [1], bytes(4))}),
            R.ADAPTER_UNSUPPORTED,
            "score",
        ),
        (
            lambda c, t: t.update({lora("A"): ("F32", [2, 4], struct.pack("<8f", *[float("nan")] * 8))}),
            R.NOT_FINITE,
            "NaN",
        ),
        (
            lambda c, t: (
                t.update({lora("A"): ("F32", [2, 4], struct.pack("<8f", *[3e38] * 8))}) or c.update(lora_alpha=99)
            ),
            R.NOT_FINITE,
            "after merging",
        ),
    ],
)
def test_what_can_not_be_merged_exactly_is_refused_by_name(
    registry: Registry, base: ModelRef, tmp_path: Path, change: Callable[..., object], reason: R, said: str
) -> None:
    with pytest.raises(VerificationError, match=said) as caught:
        publish_on(registry, write_adapter(tmp_path / "adapter", change), base)
    assert caught.value.reason is reason
    assert registry.versions() == [base] and not list(registry.root.glob("staging/*"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "tokenizer.json",
            json.dumps(
                {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": VOCABULARY, "content": "<think>"}]},
            ),
            f"'<think>' has the id {VOCABULARY}",
        ),
        ("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0, "b": VOCABULARY}}}), f"'b' has the id {VOCABULARY}"),
        ("tokenizer.json", json.dumps({"model": {"another": 1}}), "no model with a vocabulary"),
        ("generation_config.json", json.dumps({"eos_token_id": VOCABULARY}), f"eos_token_id is {VOCABULARY}"),
    ],
)
def test_a_token_without_a_row_in_the_embedding_is_neither_published_nor_verified(
    registry: Registry,
    base: ModelRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    said: str,
) -> None:
    source = write_adapter(tmp_path / "adapter")
    if name == "tokenizer.json":
        (source / "tokenizer_config.json").write_text("{}")
        (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / name).write_text(text)

    def refused(action: Callable[[], object]) -> None:
        with pytest.raises(VerificationError, match=said) as caught:
            action()
        assert (caught.value.reason, caught.value.file) == (R.CONFIG_MALFORMED, name)

    refused(lambda: publish_on(registry, source, base))
    assert registry.versions() == [base] and not list(registry.root.glob("staging/*"))
    monkeypatch.setattr(publishing, "require_ids", lambda *given: None)  # an older publisher let it pass
    ref = publish_on(registry, source, base)
    refused(lambda: registry.verify(ref))


def another_base(base: Path) -> None:
    document = json.loads((base / "manifest.json").read_text())
    shutil.rmtree(base)
    other = Registry(base.parents[2])
    source = base.parents[3] / "base"
    metadata = PublishMetadata(step=document["step"], licence="MIT")  # the same files, and another manifest
    other.publish(source, name="base", kind="policy", metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "reason", "file"),
    [
        (lambda own, base: shutil.rmtree(base), R.BASE_MISSING, None),
        (lambda own, base: another_base(base), R.BASE_DIFFERS, None),
        (lambda own, base: flip(base / "manifest.json"), R.BASE_DIFFERS, None),
        (lambda own, base: flip(base / "model.safetensors"), R.BASE_DIFFERS, "model.safetensors"),
        (lambda own, base: (base / "model.safetensors").unlink(), R.BASE_DIFFERS, None),
        (lambda own, base: (base / "model.safetensors").write_bytes(b"{}"), R.BASE_DIFFERS, None),
        (lambda own, base: flip(own / WEIGHTS), R.CHECKSUM_MISMATCH, WEIGHTS),
        (lambda own, base: flip(own / "adapter_config.json", 9), R.CHECKSUM_MISMATCH, "adapter_config.json"),
        (lambda own, base: flip(own / "tokenizer.json"), R.CHECKSUM_MISMATCH, "tokenizer.json"),
        (lambda own, base: (own / WEIGHTS).unlink(), R.FILE_MISSING, WEIGHTS),
        (lambda own, base: (own / WEIGHTS).write_bytes(b"short"), R.SIZE_MISMATCH, WEIGHTS),
        (lambda own, base: (own / "model.safetensors").write_bytes(b"x"), R.FILE_EXTRA, "model.safetensors"),
        (lambda own, base: (own / "code.py").write_text("1"), R.PYTHON_CODE, "code.py"),
        (
            lambda own, base: ((own / WEIGHTS).unlink(), (own / WEIGHTS).symlink_to(base / "model.safetensors")),
            R.SYMLINK,
            WEIGHTS,
        ),
    ],
)
def test_each_fault_has_its_reason_and_leaves_nothing(
    registry: Registry,
    base: ModelRef,
    adapter: ModelRef,
    tmp_path: Path,
    damage: Callable[[Path, Path], object],
    reason: R,
    file: str | None,
) -> None:
    damage(registry.path(adapter), registry.path(base))
    for use in (lambda: registry.verify(adapter), lambda: registry.private_copy(adapter, tmp_path / "cache")):
        with pytest.raises(VerificationError) as caught:
            use()
        assert (caught.value.reason, caught.value.file) == (reason, file), caught.value.message
    assert not list((tmp_path / "cache" / "pol").glob("*s7-*/*"))
