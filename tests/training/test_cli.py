"""The subcommands: they print, they write, and a mistake is one sentence."""

import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from acemath_training.cli import data, train

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
