"""A checkpoint that was trained elsewhere gets a canary that `publish` takes and that a good load reproduces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification
from typer.testing import CliRunner, Result

from acemath_registry import ModelRef, Registry
from acemath_registry.cli import app as registry_app
from acemath_registry.hub import download
from acemath_training import canary_for
from acemath_training.cli import train
from acemath_training.embedded import canary
from doubles.hub import Hub, serve_hub

REPO = "somebody/their-policy"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serve_hub() as made:
        monkeypatch.setattr(canary_for, "download", partial(download, endpoint=made.url))
        yield made


@pytest.fixture
def rewarding(tiny_base: Path, tmp_path: Path) -> Path:
    """A reward model with the tiny base's tokenizer."""
    directory = tmp_path / "reward"
    shutil.copytree(tiny_base, directory)
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(str(directory), num_labels=1)
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(str(directory))
    return directory


def run(source: Path | str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(train, ["canary", str(source), "--out", str(out), *more])


def published(root: Path, source: Path, kind: str, metadata: Path) -> ModelRef:
    named = ("--name", "their", "--kind", kind, "--step", "7", "--licence", "MIT")
    options = (*named, "--metadata", str(metadata), "--root", str(root), "--json")
    done = CliRunner().invoke(registry_app, ["publish", str(source), *options])
    assert done.exit_code == 0 and "no canary" not in done.stderr, done.output
    return ModelRef.parse(json.loads(done.stdout)["model"])


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_publish_takes_it(kind: str, tiny_base: Path, rewarding: Path, tmp_path: Path) -> None:
    source, out = {"policy": tiny_base, "reward": rewarding}[kind], tmp_path / "canary.json"
    done = run(source, out, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"file": str(out), "kind": kind}
    ref = published(tmp_path / "registry", source, kind, out)
    manifest = Registry(tmp_path / "registry").manifest(ref)
    assert manifest.canary == (canary.policy if kind == "policy" else canary.reward)(source)
    assert set(manifest.tools) == {"torch", "transformers", "safetensors"}


def test_one_of_the_hub_needs_no_copy_of_ones_own(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    commit = hub.push(REPO, {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    out = tmp_path / "canary.json"
    done = run(f"hf://{REPO}", out)
    pinned = f"acemath registry publish hf://{REPO}@{commit} --name NAME --kind policy"
    assert done.exit_code == 0 and pinned in done.stdout, "the branch may move"
    assert json.loads(out.read_text())["canary"] == canary.policy(tiny_base)


def without_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()


def with_a_broken_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% if %}")


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def an_adapter(directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")


def of_another_class(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"architectures": [name]}))

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_template, "no single chat template"),
        (with_a_broken_template, "does not compile"),
        (without_weights, "the canary cannot be computed"),
        (an_adapter, "it is an adapter); give the folder of the merged model"),
        (of_another_class("Qwen2ForRewardModel"), "publish it without a canary"),
        (of_another_class("MistralForCausalLM"), "this project serves exactly one of"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_writes_nothing(
    spoil: Callable[[Path], None], said: str, tiny_base: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "checkpoint", tmp_path / "canary.json"
    shutil.copytree(tiny_base, source)
    spoil(source)
    done = run(source, out)
    assert done.exit_code == 1 and said in done.stderr and not out.exists()
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == done.stderr.splitlines()[-1:]


def test_a_path_that_is_none_is_said(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing", tmp_path / "canary.json")
    assert done.exit_code == 1 and "there is no directory" in done.stderr
