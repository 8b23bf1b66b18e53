"""A canary's share is taken away when its figures left their bands often enough in a row, and for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loopback_ports import free_run
from prometheus_client import CollectorRegistry
from registry.tiny import METADATA
from registry.watched import BANDS as CHANNEL_BANDS
from registry.watched import M as ChannelMeasure
from registry.watched_canary import BANDS, M
from typer.testing import CliRunner

from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.release_figures import CountedAs
from acemath_registry import CanaryGate, Gates, ModelRef, Registry, Release
from acemath_registry.canary_figures import (
    CanaryBand,
    CanaryBands,
    CanaryMeasure,
    compared,
    role_count_query,
    role_value_query,
)
from acemath_registry.canary_watch import CanaryWatcher
from acemath_registry.cli import app
from acemath_registry.prometheus import generation_queries
from acemath_registry.watch import Verdict, Watcher
from doubles.figures import ScriptedFigures

V = Verdict
Figures = dict[CanaryMeasure, tuple[float, float]]
GOOD: Figures = {M.ERROR_RATE: (0.3, 0.29), M.AGREEMENT_MEAN: (0.5, 0.4)}
BAD: Figures = {M.ERROR_RATE: (0.3, 0.0), M.AGREEMENT_MEAN: (0.5, 0.4)}


def say(figures: ScriptedFigures, bands: CanaryBands, generation: int, said: Figures, count: float = 1000.0) -> None:
    """What Prometheus would answer while all gateways used one generation; `count` is of the canary."""
    figures.answers = dict.fromkeys(generation_queries(bands), float(generation))
    for measure, values in said.items():
        for role, value in zip(("canary", "current"), values, strict=True):
            figures.answers[role_value_query(measure, role, bands)] = value
            figures.answers[role_count_query(measure, role, bands)] = count if role == "canary" else 1e6


@pytest.fixture
def releases(registry: Registry, reward: ModelRef, make_checkpoint: Callable[..., Path]) -> list[Release]:
    """Two releases, the first one current, the second one with a share: generation 2."""
    made = []
    for mark in ("old", "new"):
        policy = registry.publish(make_checkpoint(mark=mark), name="pol", kind="policy", metadata=METADATA)
        made.append(registry.create_release(policy, reward))
    registry.promote("default", made[0].id, expected_generation=None, by="ann")
    registry.canary("default", made[1].id, 0.05, by="ann")
    return made


@pytest.fixture
def figures() -> ScriptedFigures:
    return ScriptedFigures()


def test_the_third_bad_look_in_a_row_takes_the_share_away(
    registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    watcher = CanaryWatcher(registry, "default", figures, BANDS)
    say(figures, BANDS, 2, GOOD)
    assert watcher.look().verdict is V.INSIDE
    say(figures, BANDS, 2, BAD)
    looks = [watcher.look() for _ in range(3)]
    assert [look.verdict for look in looks] == [V.OUTSIDE, V.OUTSIDE, V.CANARY_STOPPED]
    channel, line = registry.channel("default"), registry.log()[-1]
    assert (channel.release, channel.generation, channel.canary) == (releases[0].id, 3, None)
    said = "error_rate is 0.3 (0.3 against 0) over 300 s (1000 and 1000000 events), its band is … 0.02"
    assert (line.event.value, line.by, line.before, line.why) == ("canary_stop", "watch", releases[1].id, said)
    assert looks[2].document()["release"] == releases[1].id and looks[1].measures["error_rate"]["outside_looks"] == 2
    assert watcher.look().verdict is V.NOT_WATCHED


def test_a_look_that_fails_for_any_reason_ends_nothing_and_counts_for_nothing(
    registry: Registry, releases: list[Release], figures: ScriptedFigures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprised(query: str) -> float:
        raise ZeroDivisionError("of a kind that nobody thought of")

    watcher = CanaryWatcher(registry, "default", figures, BANDS)
    say(figures, BANDS, 2, BAD)
    assert [watcher.look().why for _ in range(2)] == ["look 1 of 3", "look 2 of 3"]
    with monkeypatch.context() as patch:
        patch.setattr(figures, "ask", surprised)
        assert "ZeroDivisionError" in watcher.look().why
    assert watcher.look().why == "look 1 of 3" and registry.channel("default").canary is not None


def test_a_canary_that_takes_nothing_loses_its_share(
    registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    """All that it is asked is a 400: there are no jobs of it to be late, to fail or to agree."""
    bands = CanaryBands(bands=(CanaryBand(measure=M.REFUSED_RATE, high=0.1), *BANDS.bands))
    say(figures, bands, 2, {M.REFUSED_RATE: (1.0, 0.01)})
    figures.answers |= {role_count_query(measure, "canary", bands): 0.0 for measure in GOOD}
    watcher = CanaryWatcher(registry, "default", figures, bands)
    assert [watcher.look().verdict for _ in range(3)] == [V.OUTSIDE, V.OUTSIDE, V.CANARY_STOPPED]
    assert "refused_rate is 0.99 (1 against 0.01)" in str(registry.log()[-1].why)


STEPS = st.sampled_from(["good", "bad", "few", "few current", "none", "mixed", "nan"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=10), looks=st.integers(1, 4))
@example(steps=["bad", "bad", "few", "bad", "none", "bad", "mixed", "bad", "good", "bad"], looks=3)
def test_it_acts_on_so_many_bad_looks_in_a_row_and_on_nothing_else(
    steps: list[str], looks: int, registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    bands = BANDS.model_copy(update={"looks": looks})
    registry.promote("default", releases[1].id, expected_generation=None, by="ann")
    registry.promote("default", releases[0].id, expected_generation=None, by="ann")
    generation = registry.canary("default", releases[1].id, 0.05, by="ann").generation
    watcher, streak = CanaryWatcher(registry, "default", figures, bands, 0.0), 0
    for step in steps:
        say(figures, bands, generation, BAD, 99 if step == "few" else 100)
        if step == "good":
            say(figures, bands, generation, GOOD)
            figures.answers.pop(role_value_query(M.AGREEMENT_MEAN, "canary", bands))  # not all: so never promoted
        if step == "few current":
            figures.answers |= {role_count_query(m, "current", bands): 99.0 for m in GOOD}
        if step == "mixed":
            figures.answers[generation_queries(bands)[0]] -= 1
        if step in ("none", "nan"):
            query = role_count_query if step == "none" else role_value_query
            figures.answers.pop(query(M.ERROR_RATE, "canary", bands))
        streak = streak + 1 if step == "bad" else 0
        assert (watcher.look().verdict is V.CANARY_STOPPED) == (streak == looks)
        assert registry.channel("default").generation == generation + (streak == looks)
        if streak == looks:
            return


def test_it_is_promoted_after_nothing_but_looks_inside(
    registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    clock = [0.0]
    watcher = CanaryWatcher(registry, "default", figures, BANDS, 100.0, now=lambda: clock[0])

    def look(at: float, said: Figures) -> Verdict:
        clock[0] = at
        say(figures, BANDS, 2, said)
        return watcher.look().verdict

    few = {M.ERROR_RATE: GOOD[M.ERROR_RATE]}
    assert [look(0, GOOD), look(99, GOOD)] == [V.INSIDE] * 2
    assert [look(101, few), look(102, GOOD), look(201, GOOD)] == [V.NO_FIGURES, V.INSIDE, V.INSIDE], "it began anew"
    assert [look(203, BAD), look(204, GOOD)] == [V.OUTSIDE, V.INSIDE]
    assert look(304, GOOD) is V.CANARY_PROMOTED
    channel = registry.channel("default")
    assert (channel.release, channel.generation, channel.by, channel.canary) == (releases[1].id, 3, "watch", None)


def test_gates_and_others_hold_it_up(registry: Registry, releases: list[Release], figures: ScriptedFigures) -> None:
    registry.set_gates("default", Gates(canary=CanaryGate.DECLARED), by="ann")
    say(figures, BANDS, 2, GOOD)
    look = CanaryWatcher(registry, "default", figures, BANDS, 0.0).look()
    assert look.verdict is V.FAILED and "not promoted: the gates of channel 'default' refuse" in look.why
    assert registry.channel("default").canary is not None

    class Overtaken(ScriptedFigures):
        def ask(self, query: str) -> float:
            if query == role_value_query(M.AGREEMENT_MEAN, "current", once):
                registry.canary("default", releases[1].id, 0.5, by="ann")
            return super().ask(query)

    once, overtaken = BANDS.model_copy(update={"looks": 1}), Overtaken()
    say(overtaken, once, 2, BAD)
    look = CanaryWatcher(registry, "default", overtaken, once).look()
    assert look.verdict is V.FAILED and "the share was not taken away" in look.why and "is at generation 3" in look.why


def test_scores_of_two_reward_models_are_not_compared(
    registry: Registry, releases: list[Release], figures: ScriptedFigures, make_checkpoint: Callable[..., Path]
) -> None:
    bands = CanaryBands(bands=(CanaryBand(measure=M.SCORE_MEAN, low=-0.1),), looks=1)
    other = registry.publish(make_checkpoint("reward", mark="other"), name="rew", kind="reward", metadata=METADATA)
    registry.stop_canary("default", by="ann")
    release = registry.create_release(releases[1].policy.ref, other)
    registry.canary("default", release.id, 0.5, by="ann")
    say(figures, bands, 4, {M.SCORE_MEAN: (-5.0, 5.0)})
    look = CanaryWatcher(registry, "default", figures, bands, 0.0).look()
    assert look.verdict is V.NO_FIGURES and "no common scale" in look.why


def test_the_watch_of_the_channel_stands_still_meanwhile_and_goes_on_afterwards(
    registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    """A canary's failures are in the channel's figures; the current release is not taken back for them."""
    registry.promote("default", releases[1].id, expected_generation=None, by="ann")
    registry.canary("default", releases[0].id, 0.5, by="ann")
    registry.set_bands("default", CHANNEL_BANDS, by="ann")
    watcher = Watcher(registry, "default", figures)
    figures.say(CHANNEL_BANDS, 4, {ChannelMeasure.ERROR_RATE: 0.5})
    assert watcher.look().verdict is V.NOT_WATCHED and "these figures are of both" in watcher.look().why
    registry.stop_canary("default", by="ann")
    figures.say(CHANNEL_BANDS, 5, {ChannelMeasure.ERROR_RATE: 0.5, ChannelMeasure.SCORE_MEAN: 1.0})
    assert [watcher.look().verdict for _ in range(3)] == [V.OUTSIDE, V.OUTSIDE, V.ROLLED_BACK]


def test_the_queries_name_figures_that_the_gateway_has() -> None:
    metrics = CollectorRegistry()
    GatewayMetrics.on(metrics)
    exported = {sample.name for family in metrics.collect() for sample in family.samples}  # no `_sum` below zero
    queries = [make(m, role, BANDS) for m in M for role in ROLES for make in (role_value_query, role_count_query)]
    for role in ROLES:
        asked = [make(m, role, BANDS) for m in M for make in (role_value_query, role_count_query)]
        assert {name for query in asked for name in re.findall(r'release(=~?"[^"]*")', query)} == {f'="{role}"'}
    assert {counted.value for counted in CountedAs} == {*ROLES, "old"}, "jobs of a release that is neither any more"
    named = {name for query in queries for name in re.findall(r"acemath_gateway_\w+", query)}
    assert named <= exported


ROLES = ("canary", "current")


SERIES = {
    'acemath_gateway_release_requests_total{release="canary",outcome="ok"}': "0+8x10",
    'acemath_gateway_release_requests_total{release="canary",outcome="failed"}': "0+2x10",
    'acemath_gateway_release_requests_total{release="canary",outcome="cancelled"}': "0+90x10",
    'acemath_gateway_release_requests_total{release="canary",outcome="refused"}': "0+30x10",
    'acemath_gateway_release_requests_total{release="old",outcome="failed"}': "0+70x10",
    'acemath_gateway_release_requests_total{release="current",outcome="ok"}': "0+95x10",
    'acemath_gateway_release_requests_total{release="current",outcome="degraded"}': "0+5x10",
    'acemath_gateway_release_requests_total{release="current",outcome="failed"}': "0+0x10",
    'acemath_gateway_release_requests_total{release="current",outcome="refused"}': "0+0x10",
    'acemath_gateway_release_request_duration_seconds_bucket{release="canary",le="1"}': "0+0x10",
    'acemath_gateway_release_request_duration_seconds_bucket{release="canary",le="2"}': "0+8x10",
    'acemath_gateway_release_request_duration_seconds_bucket{release="canary",le="+Inf"}': "0+8x10",
    'acemath_gateway_release_score_parts_total{release="canary",sign="positive"}': "0+1x10",
    'acemath_gateway_release_score_parts_total{release="canary",sign="negative"}': "0+9x10",
    'acemath_gateway_release_score_parts_total{release="current",sign="positive"}': "0+90x10",
    'acemath_gateway_release_score_count{release="canary"}': "0+8x10",
    'acemath_gateway_release_agreement_sum{release="canary"}': "0+6x10",
    'acemath_gateway_release_agreement_count{release="canary"}': "0+8x10",
    'acemath_gateway_release_agreement_sum{release="old"}': "0+0x10",
    'acemath_gateway_release_agreement_count{release="old"}': "0+50x10",
}
EXPECTED = {
    role_value_query(M.ERROR_RATE, "canary", BANDS): 0.2,
    role_value_query(M.ERROR_RATE, "current", BANDS): 0.0,
    role_value_query(M.DEGRADED_RATE, "current", BANDS): 0.05,
    role_value_query(M.REFUSED_RATE, "canary", BANDS): 0.75,
    role_value_query(M.REFUSED_RATE, "current", BANDS): 0.0,
    role_value_query(M.LATENCY_P95_RATIO, "canary", BANDS): 1.95,
    role_value_query(M.AGREEMENT_MEAN, "canary", BANDS): 0.75,
    role_value_query(M.SCORE_MEAN, "canary", BANDS): -1.0,
    role_count_query(M.ERROR_RATE, "canary", BANDS): 50.0,
    role_count_query(M.REFUSED_RATE, "canary", BANDS): 200.0,
    role_count_query(M.LATENCY_P95_RATIO, "canary", BANDS): 40.0,
    role_count_query(M.AGREEMENT_MEAN, "canary", BANDS): 40.0,
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_the_queries_mean_what_they_say(tmp_path: Path) -> None:
    """Evaluated by Prometheus' own engine, ten minutes into these series."""
    asked = [
        {"expr": f"round({query}, 0.001)", "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": value}]}
        for query, value in EXPECTED.items()
    ]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    cases = {"rule_files": [], "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}
    (tmp_path / "cases.yml").write_text(json.dumps(cases))
    command = ["promtool", "test", "rules", str(tmp_path / "cases.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_differences_and_ratios() -> None:
    assert compared(M.ERROR_RATE, 0.5, 0.25) == 0.25 and compared(M.LATENCY_P95_RATIO, 3.0, 2.0) == 1.5
    assert compared(M.LATENCY_P95_RATIO, 3.0, 0.0) is None


def test_the_command(registry: Registry, releases: list[Release]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        options = ["--prometheus", f"http://127.0.0.1:{free_run()}", "--looks", "1", "--root", str(registry.root)]
        done = CliRunner().invoke(app, ["watch", "canary", "default", *arguments, *options, "--json"])
        return done.exit_code, done.stdout or done.stderr

    bands = ("--band", "error_rate::0.02", "--band", "refused_rate::0.1", "--band", "latency_p95_ratio::1.5")
    code, looked = run(*bands, "--promote-after", "2")
    assert code == 0 and json.loads(looked)["verdict"] == "no_figures"
    for wrong in ("error_rate", "error_rate::", "latency_p95_seconds::1"):
        code, said = run("--band", wrong)
        assert code == 1 and json.loads(said)["error"]["param"] == "band", wrong
