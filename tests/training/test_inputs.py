"""A run goes on only over the rows it began with: data files, templates, split and tokenizer are compared."""

import json
import logging
import shutil
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from acemath_training.errors import CheckpointError, DataError
from acemath_training.jobs import inputs
from acemath_training.jobs.checkpoint_guard import MARKER, CheckpointGuard, Topology, find_resumable
from acemath_training.jobs.config import RewardConfig, SftConfig

TRAINING = {"learning_rate": 1e-3, "rows_per_device": 1, "max_steps": 4}
STORIES = {"kind": "word_problems", "weight": 1, "templates": ["stories.yaml"]}


def sft(**data: Any) -> SftConfig:
    """A supervised job over this data."""
    return SftConfig.model_validate(
        {"job": "sft", "stage": "t", "model": {"base": "tiny"}, "data": data, "training": TRAINING}
    )


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packaged data that a test may change."""
    copy = tmp_path / "packaged"
    shutil.copytree(str(resources.files("acemath_training.data")), copy)
    monkeypatch.setattr(inputs.resources, "files", lambda package: copy)
    return copy


def topology(config: SftConfig, work: Path, base: Path) -> Topology:
    """Of a run with nothing but its inputs of interest."""
    return Topology(
        world_size=2,
        rows_per_device=1,
        gradient_accumulation=1,
        seed=0,
        zero_stage=3,
        config_sha256="a",
        inputs=inputs.digests(config, work, base),
    )


def save(output: Path, found: Topology) -> Path:
    """A complete checkpoint of step 8; its marker."""
    directory = output / "checkpoint-8"
    directory.mkdir(parents=True)
    state = TrainerState(global_step=8, is_world_process_zero=True)
    CheckpointGuard(found).on_save(SimpleNamespace(output_dir=str(output)), state, TrainerControl())
    return directory / MARKER


def test_a_changed_data_file_is_refused_with_what_to_do(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("1")
    save(tmp_path / "out", topology(sft(file="rows.jsonl"), tmp_path, tiny_base))
    now = topology(sft(file="rows.jsonl"), tmp_path, tiny_base)
    assert find_resumable(tmp_path / "out", now) == tmp_path / "out" / "checkpoint-8"
    (tmp_path / "rows.jsonl").write_text("2")
    with pytest.raises(CheckpointError, match=r"data file rows\.jsonl was \w{12}, is \w{12}.*start anew"):
        find_resumable(tmp_path / "out", topology(sft(file="rows.jsonl"), tmp_path, tiny_base))


@pytest.mark.parametrize(
    ("changed", "named"), [("templates/stories.yaml", "template file stories.yaml"), ("splits.json", "splits.json")]
)
def test_a_changed_template_or_split_is_refused(
    changed: str, named: str, packaged: Path, tiny_base: Path, tmp_path: Path
) -> None:
    config = sft(mixture=[STORIES])
    save(tmp_path / "out", topology(config, tmp_path, tiny_base))
    with (packaged / changed).open("a") as out:
        out.write("\n")
    with pytest.raises(CheckpointError, match=f"{named} was"):
        find_resumable(tmp_path / "out", topology(config, tmp_path, tiny_base))


def test_a_template_file_that_is_not_drawn_from_may_change(packaged: Path, tiny_base: Path, tmp_path: Path) -> None:
    save(tmp_path / "out", topology(sft(mixture=[STORIES]), tmp_path, tiny_base))
    (packaged / "templates" / "one_step.yaml").unlink()
    assert find_resumable(tmp_path / "out", topology(sft(mixture=[STORIES]), tmp_path, tiny_base))


def test_an_older_marker_is_accepted_with_a_warning(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = topology(sft(mixture=[STORIES]), tmp_path, tiny_base)
    marker = save(tmp_path / "out", now)
    document = json.loads(marker.read_text())
    del document["topology"]["inputs"]
    marker.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        assert find_resumable(tmp_path / "out", now) == marker.parent
    assert "does not say whether these changed since" in caplog.text
    assert "splits.json, template file stories.yaml" in caplog.text


def test_what_each_job_reads(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(name)
    of_base = {"the base's tokenizer.json", "the base's tokenizer_config.json", "the base's chat_template.jinja"}
    mixture = [{"kind": "gsm8k", "weight": 1, "file": "a.jsonl"}, {"kind": "gsm_symbolic", "weight": 1}, STORIES]
    assert set(inputs.digests(sft(mixture=mixture), tmp_path, tiny_base)) == of_base | {
        "data file a.jsonl",
        "reasoning-gym",
        "splits.json",
        "template file stories.yaml",
    }
    reward = {"job": "reward_model", "stage": "t", "model": {"base": "tiny"}, "training": TRAINING}
    config = RewardConfig.model_validate({**reward, "data": {"file": "b.jsonl", "more": ["a.jsonl"]}})
    found = inputs.digests(config, tmp_path, tiny_base)
    assert set(found) == of_base | {"data file a.jsonl", "data file b.jsonl"}
    assert len(set(found.values())) == 5


def test_a_missing_file_is_named(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        inputs.digests(sft(file="rows.jsonl"), tmp_path, tiny_base)
