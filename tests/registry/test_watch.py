"""The watch takes a release back when its figures were outside often enough in a row, and for nothing else."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loopback_ports import free_run
from registry.tiny import METADATA
from registry.watched import BANDS, ERRORS, SCORES, M
from typer.testing import CliRunner, Result

from acemath_registry import ModelRef, Registry, Release, StorageError, VerificationError
from acemath_registry.audit import AuditEvent
from acemath_registry.bands import Band, Bands, Streaks
from acemath_registry.cli import app
from acemath_registry.prometheus import count_query, generation_queries, value_query
from acemath_registry.watch import Verdict, Watcher
from doubles.figures import ScriptedFigures

V = Verdict
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


def test_a_release_that_takes_nothing_is_taken_back(
    registry: Registry, releases: list[Release], figures: ScriptedFigures
) -> None:
    """All that it is asked is a 400: there are no jobs of which anything could fail."""
    bands = BANDS.model_copy(update={"bands": (Band(measure=M.REFUSED_RATE, high=0.3), ERRORS)})
    registry.set_bands("default", bands, by="ann")
    figures.say(bands, 2, {M.REFUSED_RATE: 1.0})
    figures.answers[count_query(M.ERROR_RATE, bands)] = 0.0
    watcher = Watcher(registry, "default", figures)
    assert [watcher.look().verdict for _ in range(3)] == [V.OUTSIDE, V.OUTSIDE, V.ROLLED_BACK]
    assert "refused_rate is 1 over 300 s" in str(registry.log()[-1].why)


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


def test_a_look_that_fails_for_any_reason_ends_nothing_and_counts_for_nothing(
    watcher: Watcher, registry: Registry, figures: ScriptedFigures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprised(query: str) -> float:
        raise http.client.BadStatusLine("SSH-2.0")

    figures.say(BANDS, 2, BAD)
    assert [watcher.look().why for _ in range(2)] == ["look 1 of 3", "look 2 of 3"]
    with monkeypatch.context() as patch:
        patch.setattr(figures, "ask", surprised)
        look = watcher.look()
    assert look.verdict is V.FAILED and "BadStatusLine: SSH-2.0" in look.why
    assert watcher.look().why == "look 1 of 3" and registry.channel("default").generation == 2


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


def test_a_loop_survives_what_is_no_prometheus(registry: Registry, releases: list[Release]) -> None:
    refused = run(registry, "run", "default", "--prometheus", "http://localhost:9O90", "--looks", "1", "--json")
    assert refused.exit_code == 1 and json.loads(refused.stderr)["error"]["param"] == "prometheus"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(3):
                with suppress(OSError), server.accept()[0] as connection:
                    connection.recv(65_536)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        looked = run(registry, "run", "default", "--prometheus", address, "--looks", "3", "--interval", "0.1", "--json")
    assert (
        looked.exit_code == 0
        and [json.loads(line)["verdict"] for line in looked.stdout.splitlines()] == ["no_figures"] * 3
    )


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


def test_prometheus_sees_that_it_looks_and_what_came_of_it(registry: Registry, releases: list[Release]) -> None:
    port = free_run()
    command = [sys.executable, "-c", "from acemath_registry.cli import app; app()", "watch", "run", "default"]
    options = ["--prometheus", f"http://127.0.0.1:{free_run()}", "--interval", "600", "--root", str(registry.root)]
    with subprocess.Popen(
        [*command, *options, "--metrics", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and "no_figures" in process.stdout.readline()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        shown = connection.getresponse().read().decode()
        taken = run(
            registry, "run", "default", "--prometheus", "http://127.0.0.1:1", "--metrics", f"127.0.0.1:{port}", "--json"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    of = 'channel="default"'
    figures = dict(line.rsplit(" ", 1) for line in shown.splitlines() if line.startswith("acemath_watch_"))
    assert figures[f'acemath_watch_looks_total{{{of},verdict="no_figures",watch="release"}}'] == "1.0"
    assert figures[f'acemath_watch_looks_total{{{of},verdict="rolled_back",watch="release"}}'] == "0.0"
    last = figures[f'acemath_watch_last_look_timestamp_seconds{{{of},watch="release"}}']
    assert abs(float(last) - time.time()) < 60
    error = json.loads(taken.stderr)["error"]
    assert taken.exit_code == 1 and error["param"] == "metrics" and "cannot listen on" in error["message"]


def test_metrics_are_for_a_watch_that_goes_on(registry: Registry, releases: list[Release]) -> None:
    ends = ("--looks", "1", "--metrics", "127.0.0.1:0")
    refused = run(registry, "run", "default", "--prometheus", "http://127.0.0.1:1", *ends, "--json")
    error = json.loads(refused.stderr)["error"]
    assert refused.exit_code == 1 and error["param"] == "metrics" and "goes on" in error["message"]


@pytest.mark.parametrize("address", ["9109", "127.0.0.1:99999", "http://127.0.0.1:9109", ":9109", ""])
def test_a_metrics_address_that_cannot_be(address: str, registry: Registry, releases: list[Release]) -> None:
    refused = run(registry, "run", "default", "--prometheus", "http://127.0.0.1:1", "--metrics", address, "--json")
    assert refused.exit_code == 1 and json.loads(refused.stderr)["error"]["param"] == "metrics"
