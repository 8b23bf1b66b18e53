"""The matrix of kills: which cells there are, what a state looks like, where a swap ended, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry.stores.staging import sweep_staging
from bench.swapkills.asking import Asked, Clients, Outcome, account, after, recovered
from bench.swapkills.matrix import CELLS, MEANS, Cell, Stage, Victim, left_out
from bench.swapkills.results import End, Hit, Last, Results, Row, broken, classify
from bench.swapkills.runner import Bench
from bench.swapkills.stack import files_left, left_over, make_old, serving
from bench.swapkills.swap import Kill, Swap
from bench.swapkills.table import MARK, put, render
from bench.swapkills.view import Pair, View, holds

OLD, NEW = Pair("pol@s1", "rew@s1", "r-1"), Pair("pol@s2", "rew@s2", "r-2")
CELL = Cell(Victim.GATEWAY, Stage.DRAINING)


# ------------------------------------------------------------------------------------------------------ which cells


def test_every_pair_is_a_cell_once_or_says_why_not() -> None:
    assert len(set(CELLS)) == len(CELLS)
    reasons = {(victim, stage): left_out(victim, stage) for victim in Victim for stage in Stage}
    assert sum(reason is None for reason in reasons.values()) == len(CELLS)
    assert all(reasons[cell.victim, cell.stage] is None for cell in CELLS)
    assert set(MEANS) == set(Stage)


def test_each_victim_is_met_early_and_the_swap_without_a_kill_first() -> None:
    assert CELLS[0].victim is Victim.NOBODY
    assert {cell.victim for cell in CELLS[:9]} == set(Victim)


# ------------------------------------------------------------------------------------------------- what a state is


def look(policy: dict[str, str] | None, reward: dict[str, str] | None, **more: Any) -> View:
    def named(states: dict[str, str] | None, kind: str) -> dict[str, dict[str, Any]] | None:
        steps = {"old": f"{kind}@s1", "new": f"{kind}@s2"}
        return states and {steps[name]: {"state": state, "endpoint": "http://x"} for name, state in states.items()}

    return View(policy=named(policy, "pol"), reward=named(reward, "rew"), **more)


ACTIVE = {"old": "active"}
DRAINS = {"old": "draining", "new": "active"}


@pytest.mark.parametrize(
    ("view", "stages"),
    [
        (look(ACTIVE, ACTIVE), set()),
        (look(ACTIVE, ACTIVE, staged=True), {Stage.PUBLISHING}),
        (look(ACTIVE, ACTIVE, staged=True, published=1), {Stage.PUBLISHING, Stage.HALF_PUBLISHED}),
        (look(ACTIVE, ACTIVE, published=2), set()),
        (look(ACTIVE, ACTIVE, published=2, promoted=True), {Stage.PROMOTED}),
        (look(ACTIVE | {"new": "verifying"}, ACTIVE, promoted=True), {Stage.PROMOTED}),
        (look(ACTIVE | {"new": "staging"}, ACTIVE, promoted=True), {Stage.POLICY_LOADING}),
        (look(ACTIVE, ACTIVE | {"new": "warming"}, promoted=True), {Stage.REWARD_LOADING}),
        (look(ACTIVE | {"new": "warming"}, DRAINS, promoted=True), {Stage.POLICY_LOADING, Stage.ONE_READY}),
        (look(DRAINS, DRAINS, promoted=True, routed="r-1"), set()),
        (look(DRAINS, DRAINS, promoted=True, routed="r-2"), {Stage.DRAINING}),
        (look({"new": "active"}, {"new": "active"}, promoted=True, routed="r-2"), set()),
        (look(None, None, promoted=True), {Stage.PROMOTED}),
    ],
)
def test_what_a_state_looks_like(view: View, stages: set[Stage]) -> None:
    assert {stage for stage in Stage if holds(stage, view, OLD, NEW)} == stages


def test_an_old_policy_without_an_address_is_being_stopped() -> None:
    stopping = {
        "pol@s1": {"state": "draining", "endpoint": None},
        "pol@s2": {"state": "active", "endpoint": "http://x"},
    }
    view = View(promoted=True, routed="r-2", policy=stopping, reward={})
    assert holds(Stage.STOPPING, view, OLD, NEW) and not holds(Stage.DRAINING, view, OLD, NEW)


def test_a_release_is_alone_when_both_services_say_so_and_the_gateway_routes_by_it() -> None:
    both = {"new": "active", "old": "retired"}
    assert look(both, both, routed="r-2").alone(NEW)
    for view in (look(both, both, routed="r-1"), look(both, None, routed="r-2"), look(both, DRAINS, routed="r-2")):
        assert not view.alone(NEW)
    assert look(ACTIVE | {"new": "rejected"}, ACTIVE, routed="r-1").alone(OLD)
    assert look(ACTIVE | {"new": "rejected"}, ACTIVE).rejected(NEW)


def test_of_three_commands_with_a_version_the_last_is_the_server() -> None:
    keeper, own = ["python", "shim.py", "--", "vllm", "--served-model-name", "pol@s2"], ["vllm"]
    server = [*own, "--served-model-name", "pol@s2", "--port", "8110"]
    lines = [["supervisord"], keeper, keeper, server, ["VLLM::EngineCore"], [*own, "--served-model-name", "pol@s1"]]
    assert serving(lines, "pol@s2") == 3
    assert serving(lines[:3], "pol@s2") is None, "its keepers alone are no server"
    assert serving(lines, "pol@s3") is None and serving(lines, None) is None


def test_what_is_left_in_a_registry(tmp_path: Path) -> None:
    (tmp_path / "staging" / "dead").mkdir(parents=True)
    (tmp_path / "status" / "policy").mkdir(parents=True)
    for name in (f".0.json.{'a' * 32}", ".default.lock", "0.json"):
        (tmp_path / "status" / "policy" / name).touch()
    assert left_over(tmp_path) == ["staging/dead"] and files_left(tmp_path) == 1
    make_old(tmp_path)
    sweep_staging(tmp_path / "staging")
    assert left_over(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ the account


def asked(outcome: Outcome, sent: float, ended: float, release: str = "r-1", code: str = "") -> Asked:
    return Asked(outcome, sent, ended, code, release if outcome is Outcome.ANSWERED else "")


def test_the_first_answer_of_what_was_sent_since() -> None:
    seen = [asked(Outcome.ANSWERED, 1, 12), asked(Outcome.DECLARED, 11, 13), asked(Outcome.ANSWERED, 12, 15),
            asked(Outcome.ANSWERED, 14, 18, "r-2")]  # fmt: skip
    assert after(seen, 10) == 5 and after(seen, 10, "r-2") == 8 and after(seen, 16) is None


def test_it_has_recovered_when_nothing_fails_any_more() -> None:
    lucky, failed, back = (
        asked(Outcome.ANSWERED, 10, 11),
        asked(Outcome.DECLARED, 12, 13),
        asked(Outcome.ANSWERED, 14, 16),
    )
    assert recovered([lucky, failed, back], 10) == 6, "what was answered before the last failure is no recovery"
    assert recovered([lucky, failed], 10) is None
    assert recovered([asked(Outcome.DECLARED, 1, 9), lucky, back], 10) == 0


def test_a_broken_connection_is_lost_unless_the_gateway_was_killed_then() -> None:
    cut, late = asked(Outcome.CUT, 9, 10), asked(Outcome.CUT, 30, 31)
    refused, back = asked(Outcome.CUT, 12, 12), asked(Outcome.ANSWERED, 14, 20)
    killed = account([cut, refused, back, late], 10)
    assert (killed["cut"], killed["lost"], killed["answered"]) == (2, 1, 1)
    assert account([cut, refused, back, late], None)["lost"] == 3


MOMENTS = st.floats(0, 50)


@given(st.lists(st.tuples(st.sampled_from(list(Outcome)), MOMENTS, MOMENTS), max_size=30), st.none() | MOMENTS)
def test_every_request_is_in_exactly_one_count(drawn: list[tuple[Outcome, float, float]], kill: float | None) -> None:
    found = account([asked(outcome, sent, sent + took) for outcome, sent, took in drawn], kill)
    assert found["sent"] == len(drawn) == sum(found[name] for name in ("answered", "declared error", "cut", "lost"))
    assert len(found["lost_because"]) == found["lost"]


# --------------------------------------------------------------------------------------------------- where it ended


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (Last(promoted=True, answered=True, alone=True, rejected=False), End.NEW),
        (Last(promoted=True, answered=True, alone=False, rejected=False), End.BOTH),
        (Last(promoted=False, answered=False, alone=False, rejected=False), End.OLD_KEPT),
        (Last(promoted=True, answered=False, alone=False, rejected=False), End.STUCK),
        (Last(promoted=True, answered=False, alone=False, rejected=True), End.REJECTED),
        (Last(promoted=True, answered=None, alone=True, rejected=False), End.SILENT),
    ],
)
def test_where_it_ended(last: Last, end: End) -> None:
    assert classify(last) is end


class Looks:
    """Shows one view after the other."""

    def __init__(self, *views: View) -> None:
        self._views = iter(views)

    async def look(self, old: Pair, new: Pair) -> View:
        return next(self._views)


async def test_what_was_seen_to_be_over_is_over_whatever_the_next_look_misses(tmp_path: Path) -> None:
    both = {"new": "active", "old": "retired"}
    looks = Looks(look(both, both, promoted=True, routed="r-2"), View(policy=None, reward=None))
    clients = Clients(httpx.AsyncClient(), {}, 2, 16, [asked(Outcome.ANSWERED, 11, 12, "r-2")])
    nothing: Any = None
    bench = Bench(nothing, looks, nothing, clients, nothing, OLD, 1.0, tmp_path, 1)  # type: ignore[arg-type]
    swap = Swap(bench, CELL, nothing, OLD, NEW, Kill(10.0, {}, ""))
    assert await swap._done()
    assert classify(await swap._last()) is End.NEW and bench.current == NEW


def row(**changes: Any) -> Row:
    requests = account([asked(Outcome.ANSWERED, 1, 2), asked(Outcome.DECLARED, 3, 4, code="503 not_ready")], None)
    seen = {"old policy": "draining", "new policy": "active", "old reward": "draining", "new reward": "active"}
    return {
        "hit": Hit.HIT, "attempts": 1, "killed": "acemath_gateway", "seen": seen, "end": End.NEW,
        "seconds_until_answered": 5.0, "seconds_until_new_release": None, "seconds_until_over": 9.25,
        "requests": requests, "gauges": {"leases": 0.0}, "processes": {"before": 9, "after": 9}, "left": [],
    } | changes  # fmt: skip


DIED = {"left": ["staging/x"], "left_after_gc": [], "half": [], "next": End.NEW, "next_seconds": 40.0}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"end": End.STUCK}, "ended with: old release, new promoted"),
        ({"requests": account([asked(Outcome.LOST, 1, 2, code="no end")], None)}, "1 lost"),
        ({"requests": row()["requests"] | {"sent": 3}}, "3 sent, 2 accounted for"),
        ({"requests": row()["requests"] | {"mixed": ["scored"]}}, "1 mixed"),
        ({"gauges": {"leases": 1.0}}, "gauges"),
        ({"processes": {"before": 9, "after": 10}}, "10 processes, 9 before"),
        ({"left": ["staging/x"]}, "left in the registry"),
        ({"after_publisher": DIED | {"half": ["pol@s2"]}}, "half versions"),
        ({"after_publisher": DIED | {"next": End.OLD_KEPT}}, "the next publish"),
    ],
)
def test_a_broken_promise_is_named(changes: Row, why: str) -> None:
    (found,) = broken(row(**changes))
    assert why in found


def test_what_was_kept_or_missed_breaks_nothing() -> None:
    assert broken(row()) == [] == broken({"hit": Hit.MISSED, "attempts": 3})
    assert broken(row(end=End.OLD_KEPT, after_publisher=DIED)) == []


def test_results_go_on_where_they_stopped(tmp_path: Path) -> None:
    path, other = tmp_path / "out.json", Cell(Victim.REDIS, Stage.DRAINING)
    Results(path, {"n": 2}).keep(CELL, row())
    again = Results(path, {"n": 4})
    assert again.done(CELL) and not again.done(other)
    again.keep(other, row())
    document = json.loads(path.read_text())
    assert document["n"] == 2 and set(document["cells"]) == {str(CELL), str(other)}
    assert [found.name for found in tmp_path.iterdir()] == ["out.json"]


def test_the_table_has_a_line_for_every_cell_that_was_run() -> None:
    missed, died = Cell(Victim.REWARD, Stage.REWARD_LOADING), Cell(Victim.PUBLISHER, Stage.PUBLISHING)
    rows = {
        str(CELL): row(), str(missed): {"hit": Hit.MISSED, "attempts": 3},
        str(died): row(end=End.OLD_KEPT, after_publisher=DIED, left=["staging/x"]),
    }  # fmt: skip
    text = render(json.loads(json.dumps({"cells": rows})))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "| cells | 2 kills, 1 missed" in text and "4 = 2 answered + 2 declared errors + 0 cut" in text
    assert (
        "| gateway (`acemath_gateway`) | draining | draining, active; draining, active | 5.0 | never | 9.2 "
        "| new release, old gone | 2 = 1 + 1 + 0 + 0 |" in lines
    )
    assert "| reward service | reward loading | missed 3 times" in text
    assert "left in the registry: ['staging/x']" in text and "after `gc` 0" in text
    assert str(CELLS[0]) in text.split("Not run", 1)[1] and str(CELL) not in text.split("Not run", 1)[1]
    assert len(lines) == 2 + 5 + 2 + 3, "totals, and a line for each cell that was run"
    assert "publisher @ draining, publisher @ stopping: it has ended" in text


def test_the_table_takes_its_place_in_the_document_again_and_again() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "swap-kills.md").read_text()
    once = put("| a |", text)
    assert once.endswith(f"{MARK}\n\n| a |\n") and put("| a |", once) == once
    with pytest.raises(ValueError, match="no line"):
        put("| a |", "# another")
