"""The comparison's table: ratios are of the same round, failures are shown."""

from __future__ import annotations

from typing import Any

from bench.bestofn.table import tables


def step(way: str, number: int, wall: float, **changes: Any) -> dict[str, Any]:
    row = {"way": way, "round": number, "n": 8, "clients": 1, "problems": 2, "answered": 2, "right": 1}
    return row | {"wall_seconds": wall, "seconds": [wall / 2] * 2, "tokens": 100} | changes


def test_ratios_are_of_one_round() -> None:
    steps = [step("ours", 0, 10.0), step("plain", 0, 20.0), step("ours", 1, 40.0), step("plain", 1, 40.0)]
    rows = tables({"steps": steps}).splitlines()[2:]
    assert rows[0] == "| 8 | 1 | ours | 12.50 | 7.5 | 1.00 (1.00–1.00) | 50 | 50.0 % |"
    assert rows[1] == "| 8 | 1 | plain | 15.00 | 4.5 | 0.75 (0.50–1.00) | 50 | 50.0 % |"


def test_failed_problems_are_wrong_and_shown() -> None:
    failed = step("its_hub", 0, 10.0, answered=0, right=0, seconds=[], tokens=None)
    row = tables({"steps": [step("ours", 0, 10.0), failed]}).splitlines()[-1]
    assert row == "| 8 | 1 | its_hub | nan | 0.0 | 0.00 | – | 0.0 %, 2 of 2 failed |"
