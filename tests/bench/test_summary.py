from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.reward.groups import Group
from bench.reward.record import scores_path
from bench.reward.sets import described
from bench.reward.summary import summarised
from bench.reward.table import tables

GROUP = Group("p", tuple(range(10)), ("a", "b"), ((1, 2, 3), (4, 5)))
QUIET = {"load": 0.1, "busy_cores": 0.0, "waited": 0.1}


def rows(*seconds: float, foreign: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"round": turn, "seconds": one, "cpu_seconds": one, "foreign_cores": foreign, "before": QUIET}
        for turn, one in enumerate(seconds, 1)
    ]


def leg(kind: str, **runs: list[dict[str, Any]]) -> dict[str, Any]:
    shown = {name.replace("_", "-"): {"S1": found} for name, found in runs.items()}
    return {"kind": kind, "start_seconds": 1.0, "peak_rss_mib": 5.0, "runs": shown}


def document() -> dict[str, Any]:
    return {
        "checkpoint": "c",
        "at": "now",
        "machine": {"cpu": "x", "cores": 2, "flags": []},
        "arguments": {"threads": 2, "device": "cpu", "repeats": 2},
        "quiet": 0.2,
        "sets": {"S1": described([GROUP])},
        "peak": {"team": [20.0, 30.0, 25.0], "workers": [10.0]},
        "tuning": {},
        "legs": {
            "hf-fp32": leg("peer", hf_fp32=rows(4.0, 6.0, foreign=0.5)),
            "ours": leg("ours", ours=rows(1.0, 2.0)),
            "ours-http": leg("ours", ours_http=rows(1.2, 2.4)),
            "infinity": {"kind": "peer", "runs": {}, "error": "does not install"},
        },
    }


SCORES = {"hf-fp32": {"S1": [[1.0, 2.0]]}, "ours": {"S1": [[1.25, 2.0]]}, "ours-http": {"S1": [[1.25, 2.5]]}}


def test_rates_shares_and_ratios_are_paired_within_rounds() -> None:
    found = summarised(document(), SCORES)
    assert found["peak_tokens_per_second"] == 25.0
    assert found["rates"]["ours"]["S1"]["useful_tokens_per_second"] == {"median": 11.2, "min": 7.5, "max": 15.0, "n": 2}
    assert found["ratios"]["ours"]["hf-fp32"]["S1"] == {"median": 3.5, "min": 3.0, "max": 4.0, "n": 2}
    assert found["http_overhead_ms"]["ours-http"]["S1"]["median"] == 150.0


def test_distances_bits_and_busy_calls() -> None:
    found = summarised(document(), SCORES)
    assert found["distances"]["ours"]["hf-fp32"]["largest_difference"] == 0.25
    assert found["same_as_ours"] == {"ours-http": {"scores": 2, "changed": 1}}
    assert found["busy"] == {"calls": 6, "flagged": 2, "most_foreign_cores": 0.5}


def test_the_tables_say_what_failed_and_why() -> None:
    text = tables(document(), SCORES)
    assert "| infinity | failed: does not install |" in text
    assert "3.50 (3.00-4.00)" in text


def test_scores_lie_beside_the_result() -> None:
    assert scores_path(Path("a/reward-x.json")) == Path("a/reward-x-scores.json.gz")
