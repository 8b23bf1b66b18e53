"""Two runs compared, pair by pair: through the command, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acemath_core.comparison import Comparison
from acemath_evaluation.cli import app
from acemath_evaluation.journal import Journal
from acemath_evaluation.sampling import SamplingOptions

OLD, NEW = "r-00000000000a", "r-00000000000b"
Write = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """A run of 24 problems of 8 templates, two candidates each; problem i is solved where `right(i)`."""

    def write(
        release: str, right: Callable[[int], bool], *, seed: int = 0, answer: str = "2", set_name: str = "sums"
    ) -> Path:
        directory = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        with Journal(directory / f"{set_name}.draws.jsonl", SamplingOptions(n=2, seed=seed).config()) as journal:
            journal.note_asked({f"p{i}": f"t{i // 3}" for i in range(24)})
            for i in range(24):
                journal.append(_record(i, release, right(i), answer))
        return directory

    return write


def _record(i: int, release: str, right: bool, answer: str) -> dict[str, Any]:
    texts = [f"\\boxed{{{2 if right else 3}}}", "no idea"]
    candidates = [
        {"index": j, "text": text, "score": -float(j), "completion_tokens": 3} for j, text in enumerate(texts)
    ]
    return {
        "id": f"p{i}", "cluster": f"t{i // 3}", "problem": "1+1?", "answer": answer, "release": release,
        "models": {"policy": f"p@{release}", "reward": "r@s1-0"}, "candidates": candidates,
    }  # fmt: skip


def _compare(baseline: Path, candidate: Path, out: Path, *options: str) -> Any:
    arguments = ["compare", str(baseline), str(candidate), "--out", str(out), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_two_runs_are_compared_pair_by_pair(write_run: Write, tmp_path: Path) -> None:
    old, new = write_run(OLD, lambda i: i % 3 == 0), write_run(NEW, lambda i: i % 3 < 2)
    result = _compare(old, new, tmp_path / "out" / "comparison.json", "--json")
    assert result.exit_code == 0, result.output
    found = Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_bytes())
    assert json.loads(result.stdout) == found.model_dump(mode="json")
    assert (found.baseline.release, found.candidate.release, found.n, found.complete) == (OLD, NEW, 2, True)
    best = found.find("sums", "rm@2")
    assert best is not None and (best.problems, best.clusters) == (24, 8)
    assert (best.baseline, best.candidate) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert best.low == best.high == pytest.approx(1 / 3)  # one more in each template: nothing else can be drawn
    assert {one.metric for one in found.results} == {"pass@1", "majority@2", "weighted@2", "rm@2", "pass@2"}
    shown = _compare(old, new, tmp_path / "comparison.json")
    assert "| sums | rm@2 | 24 | 33.3 | 66.7 | +33.3 [33.3, 33.3] |" in shown.stdout


def test_a_difference_that_depends_on_the_template_has_an_interval(write_run: Write, tmp_path: Path) -> None:
    old, new = write_run(OLD, lambda i: i % 2 == 0), write_run(NEW, lambda i: i % 3 != 1)
    assert _compare(old, new, tmp_path / "c.json").exit_code == 0
    best = Comparison.model_validate_json((tmp_path / "c.json").read_bytes()).find("sums", "rm@2")
    assert best is not None and best.difference == pytest.approx(4 / 24)
    assert -0.5 < best.low < best.difference < best.high < 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"release": OLD}, "both sides are the same release"),
        ({"seed": 1}, "sampled with different options"),
        ({"answer": "2.0"}, "is not the same in both runs"),
        ({"set_name": "others"}, "different sets: others, sums"),
    ],
)
def test_what_cannot_be_compared(change: dict[str, Any], said: str, write_run: Write, tmp_path: Path) -> None:
    old = write_run(OLD, lambda i: True)
    new = write_run(**({"release": NEW, "right": lambda i: True} | change))
    result = _compare(old, new, tmp_path / "c.json")
    assert result.exit_code == 1 and said in " ".join(result.stderr.split())
    assert not (tmp_path / "c.json").exists()


def test_a_run_of_two_releases_or_with_other_problems_is_not_compared(write_run: Write, tmp_path: Path) -> None:
    old, new = write_run(OLD, lambda i: True), write_run(NEW, lambda i: True)
    journal = new / "sums.draws.jsonl"
    whole = journal.read_text()
    journal.write_text(whole.replace(NEW, "r-00000000000c", 2))
    assert "several releases" in _compare(old, new, tmp_path / "c.json").stderr
    journal.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    result = _compare(old, new, tmp_path / "c.json")
    assert "1 problems have an outcome in one run only" in " ".join(result.stderr.split())
