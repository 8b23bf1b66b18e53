from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from acemath_core.calibration import read_calibration
from acemath_evaluation.calibration import calibrate, fit_probability, fit_temperature
from acemath_evaluation.cli import app
from acemath_evaluation.journal import Journal
from acemath_evaluation.metrics import GradedCandidate, GradedProblem
from acemath_evaluation.results import NothingToMeasure


def problem(name: str, *candidates: tuple[bool, float | None]) -> GradedProblem:
    graded = [GradedCandidate(right, score, 0 if right else 1, 10) for right, score in candidates]
    return GradedProblem(name, name, tuple(graded))


def luce(temperature: float, problems: int = 4000) -> list[GradedProblem]:
    """Problems with one right candidate among four, drawn from softmax(score / temperature)."""
    draw = random.Random(3)
    made = []
    for i in range(problems):
        scores = [draw.gauss(0, 2) for _ in range(4)]
        right = draw.choices(range(4), [math.exp(s / temperature) for s in scores])[0]
        made.append(problem(f"p{i}", *((k == right, s) for k, s in enumerate(scores))))
    return made


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found_again(temperature: float) -> None:
    assert fit_temperature(luce(temperature)) == pytest.approx(temperature, rel=0.12)


@given(st.integers(-50, 50))
@settings(max_examples=10)
def test_adding_a_constant_to_every_score_changes_no_temperature(shift: int) -> None:
    made = luce(2.0, 60)
    moved = [problem(p.id, *((c.correct, (c.score or 0.0) + shift) for c in p.candidates)) for p in made]
    assert fit_temperature(moved) == pytest.approx(fit_temperature(made), rel=0.03)


def test_the_logistic_curve_that_made_the_labels_is_found_again() -> None:
    draw = random.Random(4)
    made = []
    for i in range(3000):
        scores = [draw.gauss(-1, 2) for _ in range(4)]
        made.append(problem(f"p{i}", *((draw.random() < 1 / (1 + math.exp(-(0.8 * s + 0.5))), s) for s in scores)))
    slope, intercept = fit_probability(made)
    assert slope == pytest.approx(0.8, rel=0.1)
    assert intercept == pytest.approx(0.5, abs=0.1)


def test_scores_that_separate_everything_still_end() -> None:
    slope, _ = fit_probability([problem("a", (True, 5.0), (False, -5.0))])
    assert slope > 0 and math.isfinite(slope)


def test_scores_that_point_the_wrong_way_give_no_probability() -> None:
    fitted = calibrate([problem(f"p{i}", (True, -1.0 - i), (False, 1.0 + i), (False, -9.0)) for i in range(20)], "r@s1")
    assert (fitted.calibration.slope, fitted.calibration.intercept) == (None, None)
    assert fitted.calibration.probability(3.0) is None


def test_without_right_and_wrong_candidates_there_is_nothing_to_fit() -> None:
    with pytest.raises(NothingToMeasure, match="all right or all wrong"):
        calibrate([problem("a", (True, 1.0), (True, 2.0))], "r@s1")
    with pytest.raises(NothingToMeasure, match="right and wrong"):
        fit_temperature([problem("a", (True, 1.0), (False, None)), problem("b", (False, 1.0))])


def _run(directory: Path, name: str, reward: str) -> None:
    draw = random.Random(name)
    with Journal(directory / f"{name}.draws.jsonl", {"kind": "draws", "n": 2}) as journal:
        for i in range(8):
            candidates = [
                {"index": k, "text": f"\\boxed{{{i + k}}}", "score": 1.0 - k + draw.gauss(0, 1), "completion_tokens": 3}
                for k in range(2)
            ]
            record = {"id": f"p{i}", "problem": "?", "answer": str(i), "cluster": f"p{i}", "release": "r-1"}
            journal.append({**record, "models": {"policy": "p@s1", "reward": reward}, "candidates": candidates})


def test_the_command_writes_what_the_gateway_reads(tmp_path: Path) -> None:
    _run(tmp_path, "a", "r@s1")
    _run(tmp_path, "b", "r@s1")
    out = tmp_path / "calibration.json"
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    calibration = read_calibration(out)
    assert (calibration.reward, calibration.problems) == ("r@s1", 16)
    assert json.loads(result.stdout)["weighted_vote_accuracy"].keys() == {"at_temperature_1", "at_fitted_temperature"}


def test_runs_of_two_reward_versions_are_not_mixed(tmp_path: Path) -> None:
    _run(tmp_path, "a", "r@s1")
    _run(tmp_path, "b", "r@s2")
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--out", str(tmp_path / "c.json")])
    assert result.exit_code == 1
    assert "several reward versions" in result.stderr
