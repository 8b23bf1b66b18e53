"""The watch takes a release back when its figures were outside often enough in a row, and for nothing else."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loopback_ports import free_run
from prometheus_client import CollectorRegistry
from registry.tiny import METADATA
from typer.testing import CliRunner, Result

from acemath_gateway.metrics import GatewayMetrics
from acemath_registry import InvalidRequest, ModelRef, Registry, Release, StorageError, VerificationError
from acemath_registry.audit import AuditEvent
from acemath_registry.bands import Band, Bands, Measure, Streaks
from acemath_registry.cli import app
from acemath_registry.prometheus import NoFigure, Prometheus, count_query, generation_queries, value_query
from acemath_registry.watch import Figures, Verdict, Watcher
from doubles.figures import ScriptedFigures

M, V = Measure, Verdict
ERRORS = Band(measure=M.ERROR_RATE, high=0.02)
SCORES = Band(measure=M.SCORE_MEAN, low=-1.0, high=3.0)
BANDS = Bands(bands=(ERRORS, SCORES), looks=3)
GOOD, BAD = {M.ERROR_RATE: 0.0, M.SCORE_MEAN: 1.0}, {M.ERROR_RATE: 0.3, M.SCORE_MEAN: 1.0}


@pytest.fixture
def releases(registry: Registry, reward: ModelRef, make_checkpoint: Callable[..., Path]) -> list[Release]:
    """Two releases, the second one current; what is watched are `BANDS`."""
    made = []
    for mark in ("old", "new"):
        policy = registry.publish(make_checkpoint(mark=mark), name="pol", kind="policy", metadata=METADATA)
        made.append(registry.create_release(policy, reward))
        registry.promote("default", made[-1].id, expected_generation=None, by="ann")
    registry.set_bands("default", BANDS, by="ann")
    return made


@pytest.fixture
def figures() -> ScriptedFigures:
    return ScriptedFigures()


@pytest.fixture
def watcher(registry: Registry, releases: list[Release], figures: ScriptedFigures) -> Watcher:
    figures.say(BANDS, 2, GOOD)
    return Watcher(registry, "default", figures)


def test_the_third_bad_look_in_a_row_takes_the_release_back(
    watcher: Watcher, registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    assert watcher.look().verdict is V.INSIDE
    figures.say(BANDS, 2, BAD)
    looks = [watcher.look() for _ in range(3)]
    assert [look.verdict for look in looks] == [V.OUTSIDE, V.OUTSIDE, V.ROLLED_BACK]
    assert looks[1].why == "look 2 of 3" and looks[1].measures["error_rate"]["outside_looks"] == 2
    channel, line = registry.channel("default"), registry.log()[-1]
    assert (channel.release, channel.generation, channel.by) == (releases[0].id, 3, "watch")
    assert (line.event, line.by, line.before, line.after) == (
        AuditEvent.ROLLBACK, "watch", releases[1].id, releases[0].id,
    )  # fmt: skip
    said = "error_rate is 0.3 over 300 s (1000 events), its band is … 0.02"
    assert line.why == f"{releases[1].id}: {said}" and said in looks[2].why
    figures.say(BANDS, 3, BAD)
    assert {watcher.look().verdict for _ in range(5)} == {V.NOT_WATCHED}  # the one before it is the bad one
    assert registry.channel("default").generation == 3


STEPS = st.sampled_from(["good", "bad", "few", "none", "mixed", "nan"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=10), looks=st.integers(1, 4))
@example(steps=["bad", "bad", "few", "bad", "none", "bad", "mixed", "bad", "good", "bad"], looks=3)
def test_it_acts_on_so_many_bad_looks_in_a_row_and_on_nothing_else(
    steps: list[str], looks: int, registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    bands = BANDS.model_copy(update={"looks": looks})
    registry.set_bands("default", bands, by="ann")
    registry.promote("default", releases[0].id, expected_generation=None, by="ann")
    generation = registry.promote("default", releases[1].id, expected_generation=None, by="ann").generation
    watcher, streak = Watcher(registry, "default", figures), 0
    for step in steps:
        figures.say(bands, generation, GOOD if step == "good" else BAD, 99 if step == "few" else 100)
        if step == "mixed":
            figures.answers[generation_queries(bands)[0]] -= 1
        if step in ("none", "nan"):
            figures.answers.pop((count_query if step == "none" else value_query)(M.ERROR_RATE, bands))
        streak = streak + 1 if step == "bad" else 0
        assert (watcher.look().verdict is V.ROLLED_BACK) == (streak == looks)
        assert registry.channel("default").generation == generation + (streak == looks)
        if streak == looks:
            return


def test_streaks_are_of_one_measure_and_one_generation() -> None:
    streaks = Streaks()
    assert streaks.note(1, {M.ERROR_RATE: True, M.SCORE_MEAN: False}) == {M.ERROR_RATE: 1}
    assert streaks.note(1, {M.ERROR_RATE: True, M.SCORE_MEAN: True}) == {M.ERROR_RATE: 2, M.SCORE_MEAN: 1}
    assert streaks.note(1, {M.ERROR_RATE: None, M.SCORE_MEAN: True}) == {M.SCORE_MEAN: 2}
    assert streaks.note(2, {M.SCORE_MEAN: True}) == {M.SCORE_MEAN: 1}


def test_what_is_not_watched(registry: Registry, releases: list[Release], figures: ScriptedFigures) -> None:
    figures.say(BANDS, 2, BAD)
    later = Watcher(registry, "default", figures, now=lambda: time.time() + 6.1 * 3600)
    assert "it has served for 6.1 h" in later.look().why
    registry.promote("first", releases[0].id, expected_generation=0, by="ann")
    assert Watcher(registry, "first", figures).look().why == "no bands were declared"
    registry.set_bands("first", BANDS, by="ann")
    assert Watcher(registry, "first", figures).look().why == "there is no release to go back to"
    assert Watcher(registry, "absent", figures).look().verdict is V.FAILED
    (registry.root / "audit.jsonl").unlink()
    assert "does not say how" in Watcher(registry, "default", figures).look().why


def test_who_promotes_meanwhile_wins(registry: Registry, releases: list[Release], figures: ScriptedFigures) -> None:
    class Overtaken(ScriptedFigures):
        def ask(self, query: str) -> float:
            if query == value_query(M.SCORE_MEAN, bands):
                registry.promote("default", releases[0].id, expected_generation=None, by="ann")
            return super().ask(query)

    bands = BANDS.model_copy(update={"looks": 1})
    registry.set_bands("default", bands, by="ann")
    overtaken = Overtaken()
    overtaken.say(bands, 2, BAD)
    look = Watcher(registry, "default", overtaken).look()
    assert look.verdict is V.FAILED and "is at generation 3" in look.why
    assert registry.channel("default").by == "ann"


def test_bands_are_declared_with_their_line_or_not_at_all(registry: Registry, releases: list[Release]) -> None:
    assert registry.log()[-1].why == "error_rate … 0.02; score_mean -1 … 3"
    path = registry.root / "bands" / "default.json"
    path.write_text('{"schema_version": 2}')
    with pytest.raises(VerificationError, match="bands_malformed"):
        registry.bands("default")
    registry.set_bands("default", BANDS, by="ann")
    assert registry.bands("default") == BANDS and registry.bands("other") == Bands()
    log = registry.root / "audit.jsonl"
    log.unlink()
    log.mkdir()
    with pytest.raises(StorageError, match="nothing was changed"):
        registry.set_bands("default", Bands(), by="ann")
    assert registry.bands("default") == BANDS


# ------------------------------------------------------------------------------------------- what Prometheus is asked


def queries(bands: Bands) -> list[str]:
    return [*generation_queries(bands), *(make(m, bands) for m in Measure for make in (value_query, count_query))]


def test_the_queries_name_figures_that_the_gateway_has() -> None:
    metrics = CollectorRegistry()
    GatewayMetrics.on(metrics)
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.collect()}
    named = {name for query in queries(BANDS) for name in re.findall(r"acemath_gateway_\w+", query)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= exported


SERIES = {
    'acemath_gateway_requests_total{outcome="ok",n="a"}': "0+9x10",
    'acemath_gateway_requests_total{outcome="ok",n="b"}': "0+9x10",
    'acemath_gateway_requests_total{outcome="degraded",n="a"}': "0+1x10",
    'acemath_gateway_requests_total{outcome="failed",n="a"}': "0+1x10",
    'acemath_gateway_requests_total{outcome="refused",n="a"}': "0+50x10",
    'acemath_gateway_request_duration_seconds_bucket{outcome="ok",le="1"}': "0+5x10",
    'acemath_gateway_request_duration_seconds_bucket{outcome="ok",le="2"}': "0+10x10",
    'acemath_gateway_request_duration_seconds_bucket{outcome="ok",le="+Inf"}': "0+10x10",
    'acemath_gateway_request_duration_seconds_bucket{outcome="cancelled",le="+Inf"}': "0+900x10",
    'acemath_gateway_score_bucket{le="0"}': "0+10x10",
    'acemath_gateway_score_bucket{le="1"}': "0+20x10",
    'acemath_gateway_score_bucket{le="+Inf"}': "0+20x10",
    "acemath_gateway_score_sum": "0+4x10",
    "acemath_gateway_score_count": "0+20x10",
    'acemath_gateway_release_generation{n="a"}': "6 6 7x9",
    'acemath_gateway_release_generation{n="b"}': "7x11",
}
EXPECTED = {
    value_query(M.ERROR_RATE, BANDS): 0.05,
    value_query(M.DEGRADED_RATE, BANDS): 0.05,
    value_query(M.LATENCY_P95_SECONDS, BANDS): 1.9,
    value_query(M.SCORE_MEAN, BANDS): 0.2,
    value_query(M.SCORE_MEDIAN, BANDS): 0.0,
    count_query(M.ERROR_RATE, BANDS): 100.0,
    count_query(M.LATENCY_P95_SECONDS, BANDS): 95.0,
    count_query(M.SCORE_MEAN, BANDS): 100.0,
    generation_queries(BANDS)[0]: 7.0,
    generation_queries(BANDS)[1]: 7.0,
    generation_queries(BANDS.model_copy(update={"window_seconds": 600}))[0]: 6.0,
    count_query(M.ERROR_RATE, BANDS.model_copy(update={"selector": 'n="b"'})): 45.0,
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


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one that scrapes nothing."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on this machine")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_run()
    (folder / "prometheus.yml").write_text("")
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(urllib.error.URLError), urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.kill()


@pytest.mark.parametrize("kind", ["real", "double"])
def test_a_number_or_none(kind: str, request: pytest.FixtureRequest) -> None:
    figures: Figures = ScriptedFigures({"vector(1.5)": 1.5})
    if kind == "real":
        figures = Prometheus(request.getfixturevalue("prometheus"))
    assert figures.ask("vector(1.5)") == 1.5
    for query in ("acemath_gateway_absent", "vector(0) / 0"):
        with pytest.raises(NoFigure):
            figures.ask(query)


def test_what_is_no_number(prometheus: str) -> None:
    real = Prometheus(prometheus + "/")
    two = 'label_replace(vector(1), "a", "1", "", "") or label_replace(vector(1), "a", "2", "", "")'
    for query, said in (("sum(", "status 400"), (two, "or several"), ("vector(1) / 0", "nothing happened")):
        with pytest.raises(NoFigure, match=said):
            real.ask(query)
    with pytest.raises(NoFigure, match="does not answer"):
        Prometheus(f"http://127.0.0.1:{free_run()}").ask("vector(1)")
    with pytest.raises(InvalidRequest, match="no http:// or https:// address"):
        Prometheus("file:///etc")


# --------------------------------------------------------------------------------------------------------- the command


def run(registry: Registry, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["watch", *arguments, "--root", str(registry.root)])


def test_the_commands(registry: Registry, releases: list[Release]) -> None:
    declared = run(
        registry, "set", "default", "--band", "error_rate::0.05", "--band", "score_median:-2:", "--looks", "2"
    )
    assert declared.exit_code == 0 and '"score_median": "-2 …"' in declared.stdout
    shown = json.loads(run(registry, "show", "default", "--json").stdout)
    assert (shown["bands"][0], shown["looks"]) == ({"measure": "error_rate", "low": None, "high": 0.05}, 2)
    address = f"http://127.0.0.1:{free_run()}"
    looked = run(registry, "run", "default", "--prometheus", address, "--looks", "2", "--interval", "0.1", "--json")
    assert looked.exit_code == 0, looked.output
    first, second = map(json.loads, looked.stdout.splitlines())
    assert (first["verdict"], second["generation"]) == ("no_figures", 2) and "does not answer" in first["why"]
    assert registry.channel("default").generation == 2


def test_it_goes_on_until_it_is_told_to_end(registry: Registry, releases: list[Release]) -> None:
    command = [sys.executable, "-c", "from acemath_registry.cli import app; app()", "watch", "run", "default"]
    options = ["--prometheus", f"http://127.0.0.1:{free_run()}", "--interval", "600", "--root", str(registry.root)]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None and "no_figures" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--band", "error_rate"),
        ("--band", "error_rate::"),
        ("--band", "error_rate:2:1"),
        ("--band", "errors::1"),
        ("--band", "error_rate::nan"),
        ("--band", "error_rate::1", "--band", "error_rate::2"),
        ("--band", "error_rate::1", "--selector", 'a="b"}'),
    ],
)
def test_bands_that_cannot_be(arguments: tuple[str, ...], registry: Registry, releases: list[Release]) -> None:
    refused = run(registry, "set", "default", *arguments, "--json")
    assert refused.exit_code == 1 and json.loads(refused.stderr)["error"]["param"] == "band"
    assert registry.bands("default") == BANDS


def test_every_value_is_inside_or_outside_of_a_band() -> None:
    for band in (ERRORS, SCORES):
        edges = [value for value in (band.low, band.high) if value is not None]
        assert all(band.holds(edge) for edge in edges)
    assert not ERRORS.holds(0.0201) and ERRORS.holds(-5) and not SCORES.holds(-1.1)
