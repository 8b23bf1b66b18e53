"""The three commands against a scripted stack over real HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acemath_evaluation.cli import app
from acemath_evaluation.journal import read_journal
from acemath_evaluation.sampling import seed_of
from doubles.scripted_stack import Answer, refusal, scores, scripted_stack, solution

PNG = b"\x89PNG"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [
        {"id": f"p{i}", "problem": f"{i}+{i}?", "answer": str(2 * i), "meta": {"template": i // 4}} for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _solve(body: dict[str, Any], release: str = "r-1") -> Answer:
    """Three candidates: wrong, right (as x.0, best score), wrong."""
    i = int(body["problem"].split("+")[0])
    texts = [f"\\boxed{{{2 * i + 1}}}", f"so it is \\boxed{{{2 * i}.0}}", "no idea"]
    return solution(body, texts, [0.0, 2.0, -1.0], release)


def _invoke(monkeypatch: pytest.MonkeyPatch, url: str, *arguments: object) -> Any:
    monkeypatch.setenv("ACEMATH_EVALUATION__GATEWAY_URL", url)
    monkeypatch.setenv("ACEMATH_EVALUATION__REWARD_URL", url)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run_and_report(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with scripted_stack(lambda _, body: _solve(body)) as stack:
        result = _invoke(monkeypatch, stack.url, "run", problems, "--out", out, "--n", 3, "--seed", 5, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sets"][0]["done"] == 12
    bodies = {body["problem"]: body for _, body in stack.requests}
    assert bodies["3+3?"]["seed"] == seed_of("p3", 5) != seed_of("p4", 5)
    assert bodies["3+3?"]["candidates"] == "full"

    result = _invoke(monkeypatch, "http://unused", "report", out, "--json")
    assert result.exit_code == 0, result.output
    (measured,) = json.loads(result.stdout)["sets"]
    assert (measured["problems"], measured["clusters"], measured["resampled"]) == (12, 3, "templates")
    headline = measured["curve"][-1]
    assert headline["metrics"]["rm@3"]["value"] == 1.0
    assert headline["metrics"]["majority@3"]["value"] == 1.0  # one vote each; the best score decides
    assert headline["metrics"]["pass@1"]["value"] == pytest.approx(1 / 3)
    assert headline["gains"]["rm@3 - majority@3"]["high"] == 0.0
    assert headline["gains"]["rm@3 - pass@1"]["low"] == pytest.approx(2 / 3)
    assert measured["run"]["asked"] == measured["run"]["answered"] == 12
    assert measured["provenance"]["release"] == "r-1"
    report = (out / "report.md").read_text()
    assert "rm@3" in report
    assert "3 templates" in report
    assert (out / "curves.png").read_bytes().startswith(PNG)
    assert json.loads((out / "report.json").read_text())["sets"][0]["n"] == 3


def test_a_second_run_asks_only_for_what_is_missing(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with scripted_stack(lambda _, body: _solve(body)) as stack:
        assert _invoke(monkeypatch, stack.url, "run", problems, "-o", out, "--n", 3, "--sample", 5).exit_code == 0
        assert _invoke(monkeypatch, stack.url, "run", problems, "-o", out, "--n", 3).exit_code == 0
        assert len(stack.requests) == 12
        refused = _invoke(monkeypatch, stack.url, "run", problems, "-o", out, "--n", 4)
    assert refused.exit_code == 1
    assert "n is 3 there and 4 here" in " ".join(refused.stderr.split())  # wrapped wherever the path ends


def test_a_killed_run_loses_nothing(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    reached, killed = threading.Event(), threading.Event()

    def script(_: str, body: dict[str, Any]) -> Answer:
        if len(stack.requests) == 6:
            reached.set()
            killed.wait(60)
        return _solve(body)

    with scripted_stack(script) as stack:
        command = [sys.executable, "-c", "from acemath_evaluation.cli import app; app()", "run", str(problems)]
        environment = {**os.environ, "ACEMATH_EVALUATION__GATEWAY_URL": stack.url}
        arguments = ["--out", str(out), "--n", "3", "--concurrency", "1"]
        with subprocess.Popen(command + arguments, env=environment, stderr=subprocess.DEVNULL) as victim:
            assert reached.wait(60)
            os.kill(victim.pid, signal.SIGKILL)
        killed.set()
        kept = read_journal(out / "sums.draws.jsonl")[1]
        assert len(kept) == 5
        assert _invoke(monkeypatch, stack.url, "run", problems, "--out", out, "--n", 3).exit_code == 0
    records = read_journal(out / "sums.draws.jsonl")[1]
    assert records[:5] == kept
    assert {record["id"] for record in records} == {f"p{i}" for i in range(12)}
    assert len(stack.requests) == 13


def test_another_release_stops_the_run(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(_: str, body: dict[str, Any]) -> Answer:
        return _solve(body, release="r-2" if len(stack.requests) > 3 else "r-1")

    with scripted_stack(script) as stack:
        arguments = ("run", problems, "--out", tmp_path, "--n", 3, "--concurrency", 1)
        result = _invoke(monkeypatch, stack.url, *arguments)
    assert result.exit_code == 1
    assert "release r-2" in result.stderr
    assert len(read_journal(tmp_path / "sums.draws.jsonl")[1]) == 3


def test_full_services_are_asked_again_and_failures_are_named(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([refusal(503)])

    def script(_: str, body: dict[str, Any]) -> Answer:
        if body["problem"] == "7+7?":
            return refusal(400, "no such problem")
        return next(busy, None) or _solve(body)

    with scripted_stack(script) as stack:
        result = _invoke(monkeypatch, stack.url, "run", problems, "--out", tmp_path, "--n", 3)
    assert result.exit_code == 1
    assert "failed: p7" in result.stderr
    assert "no such problem" in result.stderr
    assert len(read_journal(tmp_path / "sums.draws.jsonl")[1]) == 11


def _report(monkeypatch: pytest.MonkeyPatch, out: Path, *more: object) -> tuple[dict[str, Any], str]:
    result = _invoke(monkeypatch, "http://unused", "report", out, "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), (out / "report.md").read_text()


def test_failures_are_counted_as_wrong_until_made_good(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_late = {"message": "deadline passed", "type": "error", "param": None, "code": "deadline_exceeded"}

    def script(_: str, body: dict[str, Any]) -> Answer:
        return (504, {"error": too_late}) if body["problem"] in ("7+7?", "8+8?", "9+9?") else _solve(body)

    arguments = ("run", problems, "--out", tmp_path, "--n", 3)
    with scripted_stack(script) as stack:
        assert _invoke(monkeypatch, stack.url, *arguments).exit_code == 1
    document, text = _report(monkeypatch, tmp_path)
    (measured,) = document["sets"]
    assert (measured["problems"], measured["clusters"], document["complete"]) == (12, 3, True)
    assert measured["run"] == {
        "asked": 12,
        "answered": 9,
        "failed": {"deadline_exceeded": 3},
        "unfinished": 0,
        "missing_candidates": 0,
        "asked_is_known": True,
        "failed_count_as_wrong": True,
    }
    headline = {name: value["value"] for name, value in measured["curve"][-1]["metrics"].items()}
    assert headline["rm@3"] == headline["pass@3"] == 0.75
    assert headline["pass@1"] == pytest.approx(0.25)
    assert "| sums | 12 | 9 | 3 | deadline_exceeded 3 | 0 | 0 |" in text
    assert not text.startswith("# INCOMPLETE")

    document, text = _report(monkeypatch, tmp_path, "--failed", "left-out")
    assert document["sets"][0]["problems"] == 9
    assert document["sets"][0]["curve"][-1]["metrics"]["rm@3"]["value"] == 1.0
    assert "left out" in text

    with scripted_stack(lambda _, body: _solve(body)) as stack:
        assert _invoke(monkeypatch, stack.url, *arguments).exit_code == 0
        assert len(stack.requests) == 3
    (measured,) = _report(monkeypatch, tmp_path)[0]["sets"]
    assert (measured["run"]["answered"], measured["run"]["failed"]) == (12, {})


def test_an_unfinished_run_heads_its_report(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(_: str, body: dict[str, Any]) -> Answer:
        return _solve(body, release="r-2" if len(stack.requests) > 5 else "r-1")  # stops the run after five

    with scripted_stack(script) as stack:
        _invoke(monkeypatch, stack.url, "run", problems, "--out", tmp_path, "--n", 3, "--concurrency", 1)
    document, text = _report(monkeypatch, tmp_path)
    assert text.startswith("# INCOMPLETE (sums: 5 of 12 problems): ")
    assert (document["complete"], document["sets"][0]["run"]["unfinished"]) == (False, 7)

    journal = tmp_path / "sums.draws.jsonl"  # as it was written before journals said what was asked for
    lines = [line for line in journal.read_text().splitlines(keepends=True) if '"asked"' not in line]
    journal.write_text("".join(lines))
    document, text = _report(monkeypatch, tmp_path)
    assert text.startswith("# INCOMPLETE (sums: 5 problems, not written down how many were asked for): ")
    assert not document["complete"]


def test_candidates_that_never_came_are_wrong(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(_: str, body: dict[str, Any]) -> Answer:
        i = int(body["problem"].split("+")[0])
        return solution(body, [f"\\boxed{{{2 * i}}}"] * (2 if i < 6 else 4), [1.0] * (2 if i < 6 else 4))

    with scripted_stack(script) as stack:
        assert _invoke(monkeypatch, stack.url, "run", problems, "--out", tmp_path, "--n", 4).exit_code == 0
    (measured,) = _report(monkeypatch, tmp_path)[0]["sets"]
    assert (measured["problems"], measured["left_out"], measured["mixed"]) == (12, 0, 0)
    assert (measured["run"]["missing_candidates"], measured["unscored"]) == (12, 0)
    headline = {name: value["value"] for name, value in measured["curve"][-1]["metrics"].items()}
    assert headline["pass@1"] == 0.75
    for name in ("rm@4", "majority@4", "weighted@4", "shortest@4", "longest@4", "pass@4"):
        assert headline[name] == 1.0
    at_one = {name: value["value"] for name, value in measured["curve"][0]["metrics"].items()}
    assert at_one["pass@1"] == at_one["rm@1"] == pytest.approx(0.75, abs=0.08)


def test_sets_of_a_run_as_one_group(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "more.jsonl"
    other.write_text(problems.read_text())
    out = tmp_path / "out"
    with scripted_stack(lambda _, body: _solve(body)) as stack:
        assert _invoke(monkeypatch, stack.url, "run", problems, other, "--out", out, "--n", 3).exit_code == 0
    document, text = _report(monkeypatch, out, "--group", "both=sums,more")
    both = document["sets"][-1]
    assert (both["name"], both["problems"], both["clusters"], both["run"]["asked"]) == ("both", 24, 6, 24)
    assert both["parts"] == ["sums", "more"]
    assert "| mean of sets | 24 |" in text  # of the sets, not of the group too
    assert "* both: sets `sums, more`" in text
    refused = _invoke(monkeypatch, "http://unused", "report", out, "--group", "both=sums,none")
    assert refused.exit_code == 1
    assert "no set none" in " ".join(refused.stderr.split())
    assert _invoke(monkeypatch, "http://unused", "report", out, "--group", "both").exit_code == 2


def test_a_broken_gateway_stops_the_run(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_stack(lambda *_: refusal(500, "broken")) as stack:
        result = _invoke(monkeypatch, stack.url, "run", problems, "--out", tmp_path, "--n", 3)
    assert result.exit_code == 1
    assert "in a row failed" in result.stderr
    assert len(stack.requests) < 12


def test_report_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _invoke(monkeypatch, "http://unused", "report", tmp_path)
    assert result.exit_code == 1
    assert "holds no run" in " ".join(result.stderr.split())


def test_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.jsonl"
    texts = ["\\boxed{4}", "\\boxed{5}", "\\boxed{4.0}", "\\boxed{6}"]
    candidates = [{"text": text, "correct": "4" in text} for text in texts]
    rows = [{"id": f"p{i}", "problem": "2+2?", "answer": "4", "candidates": candidates} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def script(_: str, body: dict[str, Any]) -> Answer:
        if any("6" in text for text in body["candidates"]):
            return refusal(400, "candidate too long")
        return scores([1.0 if "4" in text else 0.0 for text in body["candidates"]])

    out = tmp_path / "out"
    with scripted_stack(script) as stack:
        result = _invoke(monkeypatch, stack.url, "pool", path, "--out", out, "--n", 4, "--json")
        again = _invoke(monkeypatch, stack.url, "pool", path, "--out", out, "--n", 2, "--json")
        asked = len(stack.requests)
        missing = _invoke(monkeypatch, stack.url, "pool", path, "--out", out, "--n", 5)
        assert len(stack.requests) == asked
    assert result.exit_code == again.exit_code == 0, result.output
    (measured,) = json.loads(result.stdout)["sets"]
    headline = {name: estimate["value"] for name, estimate in measured["curve"][-1]["metrics"].items()}
    assert headline["rm@4"] == headline["majority@4"] == headline["pass@4"] == 1.0
    assert headline["pass@1"] == 0.5
    assert measured["unscored"] == 6
    assert measured["pairwise_accuracy"] == 1.0
    assert measured["provenance"] == {"reward": "r@s1-0"}
    assert json.loads(again.stdout)["sets"][0]["curve"][-1]["metrics"]["pass@2"]["value"] == pytest.approx(
        5 / 6, abs=0.08
    )
    assert missing.exit_code == 1
    assert "take a smaller n" in missing.stderr


def test_an_unknown_setting_stops_the_start(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_EVALUATION__GATEWAY", "x")
    result = _invoke(monkeypatch, "http://unused", "run", problems, "--out", tmp_path)
    assert result.exit_code == 1
    assert "ACEMATH_EVALUATION__GATEWAY" in result.stderr
