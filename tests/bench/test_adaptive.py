from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_answers import AnswerJudge
from acemath_core.wire import Selection, StopReason
from acemath_evaluation.journal import Journal
from acemath_gateway.stopping import StopRules, wave_sizes
from bench.adaptive.__main__ import main
from bench.early_reject import pool
from bench.recorded.pools import Recorded, joined, read_set
from bench.recorded.replay import adaptive, fixed

EXACT = StopRules(confidence=math.inf)


@st.composite
def orders(draw: st.DrawFn) -> list[Recorded]:
    item = st.tuples(st.integers(-8, 8).map(float), st.none() | st.integers(0, 2), st.booleans(), st.integers(1, 9))
    return [Recorded(i, *parts) for i, parts in enumerate(draw(st.lists(item, min_size=1, max_size=16)))]


def same(costs: list[int]) -> list[Recorded]:
    return [Recorded(i, 0.0, 0, True, cost) for i, cost in enumerate(costs)]


@given(orders(), st.sampled_from(Selection), st.sampled_from([0.6, 0.8, 0.95]), st.booleans())
def test_a_replay_never_costs_more_than_all_candidates(
    order: list[Recorded], selection: Selection, confidence: float, bets_within: bool
) -> None:
    whole = fixed(selection, order)
    rules, waves = StopRules(confidence), wave_sizes(len(order))
    ran = adaptive(selection, order, rules, waves, bets_within=bets_within)
    assert ran.cost <= whole.cost and ran.generated <= len(order)
    if ran.reason is None:
        assert (ran.correct, ran.cost, ran.generated) == (whole.correct, whole.cost, whole.generated)
    else:
        assert ran.generated < len(order)


@given(orders(), st.sampled_from(Selection))
def test_what_cannot_change_costs_no_accuracy(order: list[Recorded], selection: Selection) -> None:
    right = {0}
    order = [Recorded(c.index, c.score, c.answer_class, c.answer_class in right, c.cost) for c in order]
    ran = adaptive(selection, order, EXACT, wave_sizes(len(order)))
    assert ran.correct == fixed(selection, order).correct


def test_a_settled_wave_is_the_last() -> None:
    ran = adaptive(Selection.BEST_OF_N, same([5, 1, 2, 3] + [9] * 12), StopRules(), wave_sizes(16))
    assert (ran.reason, ran.generated, ran.cost, ran.steps) == (StopReason.AGREEMENT, 4, 11, 5)


def test_what_is_cut_off_has_cost_what_was_written() -> None:
    # Nine of sixteen that agree cannot be outvoted: the fourth wave ends with its first candidate, which has 2 tokens.
    ran = adaptive(Selection.MAJORITY, same([1] * 8 + [2] + [50] * 7), EXACT, wave_sizes(16))
    assert (ran.reason, ran.generated, ran.cost, ran.steps) == (StopReason.CANNOT_CHANGE, 9, 8 + 2 * 2, 1 + 1 + 1 + 2)


def test_without_scores_the_candidates_vote() -> None:
    order = [Recorded(0, None, 0, False, 1), Recorded(1, None, 1, True, 1), Recorded(2, None, 1, True, 1)]
    assert fixed(Selection.BEST_OF_N, order).correct


def journal(directory: Path, name: str) -> Path:
    draw = random.Random(name)
    path = directory / f"{name}.draws.jsonl"
    with Journal(path, {"kind": "draws", "n": 4}) as run:
        for i in range(12):
            answers = [i if draw.random() < 0.6 else i + k for k in range(1, 5)]
            candidates = [
                {"index": k, "text": f"\\boxed{{{answer}}}", "score": float(answer == i) + draw.gauss(0, 1)}
                | {"completion_tokens": 3 + k}
                for k, answer in enumerate(answers)
            ]
            record = {"id": f"p{i}", "problem": "?", "answer": str(i), "cluster": f"p{i}", "release": "r-1"}
            run.append({**record, "models": {"policy": "p@s1", "reward": "r@s1"}, "candidates": candidates})
    return path


def pools(directory: Path) -> Path:
    path = directory / "public.jsonl"
    rows = [
        {
            "id": f"q{i}",
            "problem": "?",
            "answer": "1",
            "candidates": [
                {"text": f"so \\boxed{{{1 + (k + i) % 3 // 2}}}", "correct": (k + i) % 3 < 2} for k in range(5)
            ],
        }
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sets_are_read_and_joined(tmp_path: Path) -> None:
    with AnswerJudge() as judge:
        a, b, public = (
            read_set(path, judge) for path in (journal(tmp_path, "a"), journal(tmp_path, "b"), pools(tmp_path))
        )
    assert (a.unit, a.n, a.scored, len(a.problems)) == ("tokens", 4, True, 12)
    assert (public.unit, public.n, public.scored) == ("characters", 5, False)
    (both,) = joined([a, b, public])
    assert (both.name, len(both.problems), len(set(both.clusters))) == ("a+b", 24, 24)


def test_the_command_writes_figures_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "adaptive.json"
    files = [journal(tmp_path, "a"), journal(tmp_path, "b"), pools(tmp_path)]
    main([*map(str, files), "--out", str(out), "--orders", "2", "--resamples", "100"])
    document = json.loads(out.read_text())
    assert [one["name"] for one in document["sets"]] == ["a", "b", "public", "a+b"]
    assert document["sets"][2]["selections"].keys() == {"majority"}
    for one in document["sets"]:
        for rows in one["selections"].values():
            full = next(row for row in rows if row["way"] == f"fixed {one['n']}")
            assert full["cost_saved"]["value"] == 0.0 == full["accuracy_difference"]["value"]
            assert all(row["cost"]["value"] <= full["cost"]["value"] for row in rows)
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
    assert "### a+b, best_of_majority (24 problems)" in capsys.readouterr().out


def test_a_pool_without_texts_and_scores_is_read_too(tmp_path: Path) -> None:
    votes = [[9, None, 0, True, []], [8, None, 0, True, []], [7, None, 1, False, []], [6, None, None, False, []]]
    problems = [{"id": f"p{i}", "cluster": f"p{i}", "candidates": votes} for i in range(3)]
    pool.write(
        {"reward": "", "cuts": [], "sets": [{"name": "a", "columns": [], "problems": problems}]},
        path := tmp_path / "p.json.gz",
    )
    main([str(path), "--out", str(tmp_path / "adaptive.json"), "--orders", "1", "--resamples", "20"])
    (one,) = json.loads((tmp_path / "adaptive.json").read_text())["sets"]
    assert (one["name"], one["n"], one["unit"], list(one["selections"])) == ("a", 4, "tokens", ["majority"])
