"""The subcommands: they print, they write, and a mistake is one sentence."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from acemath_training.cli import data, train
from acemath_training.data import gsm_symbolic

EMBEDDED = Path(__file__).resolve().parents[2] / "training" / "configs" / "embedded"


def test_splits_as_json() -> None:
    done = CliRunner().invoke(data, ["splits", "--json"])
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)["held_out"]["gsm_symbolic"]) >= 15


def test_problems_of_a_stage_are_shown() -> None:
    done = CliRunner().invoke(data, ["show", str(EMBEDDED / "sft-1.yaml"), "--count", "4", "--json"])
    assert done.exit_code == 0, done.output
    assert all("\\boxed{" in row["solution"] for row in json.loads(done.stdout))


def test_a_wrong_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"job": "sft"}))
    done = CliRunner().invoke(data, ["show", str(path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: bad.yaml:")


def test_held_out_problems_are_written(tmp_path: Path) -> None:
    out = tmp_path / "test.jsonl"
    done = CliRunner().invoke(data, ["held-out", "word_problems", str(out), "--per-family", "2", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == len(out.read_text().splitlines()) == 28
    assert CliRunner().invoke(data, ["held-out", "nothing", str(out)]).exit_code == 1


def test_gsm8k_is_prepared(tmp_path: Path) -> None:
    source, out = tmp_path / "train.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"question": "How many?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}) + "\n")
    done = CliRunner().invoke(data, ["gsm8k", str(source), str(out), "--json"])
    assert json.loads(done.stdout)["rows"] == 1
    assert "\\boxed{4}" in out.read_text()


def test_cards_are_listed() -> None:
    found = json.loads(CliRunner().invoke(train, ["cards", "--json"]).stdout)
    assert {card["kind"] for card in found} == {"policy", "reward"}


PAPER = EMBEDDED.parent / "acemath-7b"


def said(*arguments: str) -> str:
    done = CliRunner().invoke(data, list(arguments))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_that_reads_a_file_has_no_mixture_to_show(path: Path) -> None:
    assert f"{path.name} reads " in said("show", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a job begins with"),
        (b"\x89PNG\xff\xfe", "is not text in UTF-8"),
        (b"- sft\n", "is no mapping"),
        (b"job: [1\n", "cannot be read"),
        (b"job: sleep\n", "must be sft, reward_model or candidates"),
    ],
)
def test_a_file_that_is_no_job_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert message in said("show", str(path))
    done = CliRunner().invoke(train, ["sft", str(path), "--base", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 1 and message in done.stderr


def test_the_missing_file_of_a_mixture_says_how_it_is_made(tmp_path: Path) -> None:
    stderr = said("show", str(EMBEDDED / "sft-2.yaml"), "--work-dir", str(tmp_path))
    assert "--work-dir" in stderr and "acemath data gsm8k" in stderr


def test_a_job_of_another_kind_is_not_started(tmp_path: Path) -> None:
    path = str(PAPER / "reward-model.yaml")
    done = CliRunner().invoke(train, ["sft", path, "--base", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 1 and "is a job of kind reward_model, not sft" in done.stderr


def test_without_the_training_environment_every_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("reasoning_gym", "deepspeed"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import of it meets is ModuleNotFoundError
    benchmark, out = tmp_path / "rows.jsonl", str(tmp_path / "out.jsonl")
    benchmark.write_text('{"problem": "x"}\n')
    template_ids = gsm_symbolic.template_ids
    template_ids.cache_clear()
    try:
        for command in (["held-out", "gsm_symbolic", out], ["unseen", str(benchmark), out]):
            assert "make setup-train" in said(*command)
        config = str(EMBEDDED / "sft-1.yaml")
        assert "make setup-train" in said("show", config, "--count", "20")
    finally:
        template_ids.cache_clear()
