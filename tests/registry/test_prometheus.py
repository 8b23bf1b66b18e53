"""What the watch asks Prometheus, and what it takes for a number."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from loopback_ports import free_run
from prometheus_client import CollectorRegistry
from registry.watched import BANDS, M

from acemath_gateway.metrics import GatewayMetrics
from acemath_registry import InvalidRequest
from acemath_registry.bands import Bands, Measure
from acemath_registry.prometheus import NoFigure, Prometheus, count_query, generation_queries, value_query
from acemath_registry.watch import Figures
from doubles.figures import ScriptedFigures


def queries(bands: Bands) -> list[str]:
    return [*generation_queries(bands), *(make(m, bands) for m in Measure for make in (value_query, count_query))]


def test_the_queries_name_figures_that_the_gateway_has() -> None:
    metrics = CollectorRegistry()
    GatewayMetrics.on(metrics)
    exported = {sample.name for family in metrics.collect() for sample in family.samples}  # no `_sum` below zero
    named = {name for query in queries(BANDS) for name in re.findall(r"acemath_gateway_\w+", query)}
    assert named <= exported


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
    'acemath_gateway_score_parts_total{sign="positive"}': "0+10x10",
    'acemath_gateway_score_parts_total{sign="negative"}': "0+6x10",
    "acemath_gateway_score_count": "0+20x10",
    'acemath_gateway_release_generation{n="a"}': "6 6 7x9",
    'acemath_gateway_release_generation{n="b"}': "7x11",
}


EXPECTED = {
    value_query(M.ERROR_RATE, BANDS): 0.05,
    value_query(M.DEGRADED_RATE, BANDS): 0.05,
    value_query(M.REFUSED_RATE, BANDS): 0.714,
    value_query(M.LATENCY_P95_SECONDS, BANDS): 1.9,
    value_query(M.SCORE_MEAN, BANDS): 0.2,
    value_query(M.SCORE_MEDIAN, BANDS): 0.0,
    count_query(M.ERROR_RATE, BANDS): 100.0,
    count_query(M.REFUSED_RATE, BANDS): 350.0,
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


ADDRESSES = (
    "file:///etc", "localhost:9090", "http://", "http://:9090", "http://localhost:9O90", "http://localhost:0", "",
    "http://[::1", "http://local host:9090", "http://localhost:99999", "http://localhost:9090/\n",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_said_at_once(address: str) -> None:
    with pytest.raises(InvalidRequest, match="no http:// or https:// address") as caught:
        Prometheus(address)
    assert caught.value.param == "prometheus" and repr(address) in caught.value.message


@pytest.mark.parametrize("address", ["http://127.0.0.1:9090", "https://prometheus.internal", "http://[::1]:9090/base/"])
def test_an_address_that_is_one(address: str) -> None:
    Prometheus(address)


WELL = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "cut off": WELL + b"Content-Length: 100\r\n\r\n{",
    "no chunks": WELL + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "an endless line": b"HTTP/1.1 200 " + b"x" * 70_000,
    "no JSON": WELL + b"\r\n<html>",
    "deep JSON": WELL + b"\r\n" + b"[" * 100_000,
    "no UTF-8": WELL + b"\r\n\xff",
    "a list": WELL + b"\r\n[]",
}


@pytest.mark.parametrize("said", NONSENSE)
def test_whatever_answers_instead_of_prometheus_gives_no_figure(said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65_536)
                connection.sendall(NONSENSE[said])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NoFigure):
            Prometheus(f"http://127.0.0.1:{server.getsockname()[1]}").ask("vector(1)")
        thread.join(10)
