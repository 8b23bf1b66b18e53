from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_answers import AnswerJudge
from acemath_core.wire import Selection, StopReason
from acemath_evaluation.journal import Journal
from acemath_gateway.stopping import StopRules, wave_sizes
from bench.early_reject import pool
from bench.early_reject.__main__ import SELECTIONS, main
from bench.early_reject.drafts import described, tau
from bench.early_reject.rule import EarlyReject
from bench.early_reject.ways import mixture
from bench.recorded.pools import Recorded, RecordedSet
from bench.recorded.replay import adaptive, fixed

T = 4
HALF = EarlyReject(T, 0.5)


@st.composite
def orders(draw: st.DrawFn) -> list[Recorded]:
    number = st.integers(-8, 8).map(float)
    item = st.tuples(number, st.none() | st.integers(0, 2), st.booleans(), st.integers(1, 9), number)
    found = draw(st.lists(item, min_size=1, max_size=16))
    return [recorded(i, *parts) for i, parts in enumerate(found)]


def recorded(
    index: int, score: float, answer_class: int | None, correct: bool, cost: int, draft: float = 0.0
) -> Recorded:
    return Recorded(index, score, answer_class, correct, cost, {T: draft} if cost > T else {})


@given(orders(), st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]))
def test_the_best_share_goes_on_and_what_has_ended_stays(order: list[Recorded], keep: float) -> None:
    stopped = EarlyReject(T, keep)(order)
    assert all(order[index].cost > T and tokens == T for index, tokens in stopped.items())
    assert len(order) - len(stopped) >= max(1, keep * len(order))
    if keep == 1.0:
        assert not stopped
    going_on = [c.drafts[T] for c in order if c.cost > T and c.index not in stopped]
    assert not stopped or min(going_on, default=9.0) >= max(order[index].drafts[T] for index in stopped)


@given(orders(), st.sampled_from(Selection), st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([0.6, 0.8, 1.0]))
def test_rejection_never_costs_more_tokens_or_steps(
    order: list[Recorded], selection: Selection, keep: float, confidence: float
) -> None:
    rule, waves = EarlyReject(T, keep), wave_sizes(len(order))
    whole, less = fixed(selection, order), fixed(selection, order, stops=rule)
    assert less.cost <= whole.cost and less.steps <= whole.steps
    assert less.generated == len(order) - len(rule(order))
    ran = adaptive(selection, order, StopRules(confidence), waves, stops=rule)
    assert ran.cost <= whole.cost and 1 <= ran.generated <= len(order)


def test_the_hopeless_cost_what_they_had() -> None:
    order = [
        recorded(0, 1.0, 0, False, 3),
        recorded(1, 9.0, 1, True, 9, draft=-5.0),
        recorded(2, 5.0, 2, False, 8, draft=2.0),
        recorded(3, 0.0, 0, False, 7, draft=-6.0),
    ]
    assert HALF(order) == {1: T, 3: T}  # the best of all in the end, and looked hopeless
    ran = fixed(Selection.BEST_OF_N, order, stops=HALF)
    assert (ran.correct, ran.cost, ran.generated, ran.steps) == (False, 3 + T + 8 + T, 2, 8)


def test_a_settled_wave_is_paid_until_then() -> None:
    # The first wave stops two of its four; the two that end agree, which is not enough, so a second wave comes.
    first = [recorded(i, 1.0, 0, True, cost, draft) for i, (cost, draft) in enumerate([(2, 0), (6, 5), (9, 1), (9, 0)])]
    second = [recorded(i, 1.0, 0, True, 5, 9.0) for i in range(4, 8)]
    ran = adaptive(Selection.MAJORITY, [*first, *second, *second], StopRules(0.9), [4, 4, 4], stops=HALF)
    assert (ran.reason, ran.generated) == (StopReason.AGREEMENT, 4)
    assert (ran.cost, ran.steps) == (2 + 6 + T + T + 5 + 5 + T + T, 6 + 5)


def test_what_cannot_change_counts_those_that_may_yet_be_kept() -> None:
    # At two tokens three have ended and agree; nobody knows yet that two others will be stopped.
    order = [recorded(i, 1.0, 0, True, 2) for i in range(3)] + [recorded(3 + i, 0.0, 1, False, 9, -i) for i in range(3)]
    ran = adaptive(Selection.MAJORITY, order, StopRules(1.0), [6], stops=EarlyReject(T, 4 / 6))
    assert (ran.reason, ran.generated, ran.cost) == (None, 4, 3 * 2 + 9 + 2 * T)


@pytest.mark.parametrize(
    ("cost", "n", "share"),
    [(5.0, 1, 0.0), (10.0, 1, 0.0), (15.0, 1, 0.5), (20.0, 2, 0.0), (33.0, 3, 0.3), (99.0, 4, 0.0)],
)
def test_a_fixed_n_of_the_same_tokens(cost: float, n: int, share: float) -> None:
    found = mixture([10.0, 20.0, 30.0, 40.0], cost)
    assert found[0] == n and found[1] == pytest.approx(share)


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([(1, 1), (2, 2), (3, 3)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (1, 2), (2, 3)], 2 / 6**0.5),
        ([(1, 1)], None),
        ([(1, 1), (1, 2)], None),
    ],
)
def test_tau(pairs: list[tuple[float, float]], value: float | None) -> None:
    assert tau(pairs) == (None if value is None else pytest.approx(value))


def test_what_beginnings_tell() -> None:
    perfect = tuple(recorded(i, float(i), 0, i > 2, 9, draft=float(i)) for i in range(4))
    names = tuple("pqrst")
    one = RecordedSet("s", "tokens", 4, True, names, (perfect,) * 5, names, (), "r")
    found = described([one], T, 100)
    assert (found["tau"]["value"], found["auc_draft"]["value"], found["shift"]["value"]) == (1.0, 1.0, 0.0)
    assert found["tokens_behind"] == pytest.approx(5 / 9)
    lost = found["stopped"]["0.5"]
    assert [lost[name]["value"] for name in ("all", "right", "best")] == [0.5, 0.0, 0.0]
    assert lost["wrong"]["value"] == pytest.approx(2 / 3)


def journals(directory: Path, name: str) -> tuple[Path, Path]:
    draw, path, drafts = random.Random(name), directory / f"{name}.draws.jsonl", directory / f"{name}.drafts.jsonl"
    with Journal(path, {"kind": "draws", "n": 4}) as run, Journal(drafts, {"reward": "s1", "cuts": [2, T]}) as scored:
        for i in range(8):
            answers = [i if draw.random() < 0.5 else i + k for k in range(1, 5)]
            texts = [{"index": k, "text": f"\\boxed{{{answer}}}", "score": 0.0} for k, answer in enumerate(answers)]
            candidates = [text | {"completion_tokens": 3 + k} for k, text in enumerate(texts)]
            record = {"id": f"p{i}", "problem": "?", "answer": str(i), "cluster": f"p{i}", "release": "r-1"}
            run.append({**record, "models": {"policy": "p@s1", "reward": "r@s1"}, "candidates": candidates})
            scores = [draw.gauss(0, 1) + (answer == i) for answer in answers]
            beginnings = [{"2": score - 1} | ({str(T): score} if k > 1 else {}) for k, score in enumerate(scores)]
            scored.append({"id": f"p{i}", "tokens": [3, 4, 5, 6], "scores": scores, "drafts": beginnings})
    return path, drafts


def test_the_command_replays_a_pool_without_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with AnswerJudge() as judge:
        pool.write(pool.collect([journals(tmp_path, "a"), journals(tmp_path, "b")], judge), tmp_path / "pool.json.gz")
    assert b"boxed" not in gzip.decompress((tmp_path / "pool.json.gz").read_bytes())
    (a, _) = pool.read(tmp_path / "pool.json.gz")
    assert (a.n, a.unit, a.clusters[0], list(a.problems[0][1].drafts)) == (4, "tokens", "a/p0", [2])
    out = tmp_path / "early-reject.json.gz"
    main(["replay", str(tmp_path / "pool.json.gz"), "--out", str(out), "--orders", "2", "--resamples", "60"])
    document = json.loads(gzip.decompress(out.read_bytes()))
    assert [one["name"] for one in document["sets"]] == ["a", "b", "a+b"]
    for one in document["sets"]:
        assert one["selections"].keys() == set(SELECTIONS)
        for rows in one["selections"].values():
            named = {row["way"]: row for row in rows}
            assert named["fixed 4"]["minus_full"]["value"] == 0.0 == named["fixed 3"]["minus_same_tokens"]["value"]
            assert all(row["base_saved"]["value"] >= 0.0 for row in rows)
            assert named["reject 4, keep 0.25 at 2"]["candidates"]["value"] == 1.0
    assert (tmp_path / "early-reject.svg").read_text().startswith("<?xml")
    assert "### best_of_majority" in capsys.readouterr().out
