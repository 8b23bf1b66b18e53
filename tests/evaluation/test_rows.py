from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from acemath_evaluation.rows import RowError, load_pools, load_problems, set_name


def _write(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _row(i: int, **more: object) -> dict[str, object]:
    return {"id": f"p{i}", "problem": "1+1?", "answer": "2", "license": "MIT", **more}


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_problems(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [_row(0), _row(1, meta={"template": 7, "grade": "1"}), _row(2, answer=None)])
    problems = load_problems(path)
    assert [problem.cluster for problem in problems] == ["p0", "template:7"]
    assert set_name(path) == "set"


def test_a_sample_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows: list[object] = [_row(i) for i in range(50)]
    one = load_problems(_write(tmp_path / "a.jsonl", rows), sample=10)
    other = load_problems(_write(tmp_path / "b.jsonl", rows[::-1]), sample=10)
    assert len(one) == 10
    assert [problem.id for problem in one] == [problem.id for problem in other][::-1]
    assert len(load_problems(tmp_path / "a.jsonl", sample=99)) == 50


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "answer": "1"}, "set.jsonl:2: problem"),
        (_row(0), "p0 occurs twice"),
        (_row(1, problem=""), ":2: problem"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(RowError, match=message):
        load_problems(_write(tmp_path / "set.jsonl", [_row(0), row]))


def test_bad_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("{\n")
    with pytest.raises(RowError, match=r"set\.jsonl:1: not JSON"):
        load_problems(path)


def test_pools(tmp_path: Path) -> None:
    pool = _row(0, answer=None, candidates=[{"text": "2", "correct": True, "model": "m"}])
    (loaded,) = load_pools(_write(tmp_path / "pool.jsonl", [pool]))
    assert loaded.candidates[0].correct
    with pytest.raises(RowError, match="candidates"):
        load_pools(_write(tmp_path / "pool.jsonl", [_row(0, candidates=[])]))
