"""The optional Prometheus: never another's taken for ours, never the reason why the stack does not start."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from acemath_local import preflight
from acemath_local.preflight import prometheus_off
from acemath_local.prometheus import write_config
from acemath_local.services import local_services, prometheus_ready
from acemath_local.settings import LocalSettings

installed = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")


@pytest.fixture
def settings(tmp_path: Path, free_port) -> LocalSettings:
    values = {"STATE_DIR": str(tmp_path), "PROMETHEUS_PORT": str(free_port())}
    found = LocalSettings.read({f"ACEMATH_LOCAL__{name}": value for name, value in values.items()})
    (found.state_dir / "run").mkdir()
    write_config(found)
    return found


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")


@contextmanager
def another(port: int, config: str | None) -> Iterator[None]:
    """A server that says it is ready; one of Prometheus when it has a configuration."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "success", "data": {"config.file": config}}) if config else "welcome"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield
        finally:
            server.shutdown()


def names(settings: LocalSettings) -> list[str]:
    return [service.name for service in local_services(settings, prometheus=not prometheus_off(settings))]


def test_it_runs_when_its_port_is_free(settings):
    assert prometheus_off(settings) == "" and "prometheus" in names(settings)
    assert next(one for one in local_services(settings, prometheus=True) if one.name == "prometheus").optional


def test_a_taken_port_turns_it_off_and_says_why_and_what_to_do(settings):
    with another(settings.ports.prometheus, None):
        said = prometheus_off(settings)
        assert "prometheus" not in names(settings)
    assert f"port {settings.ports.prometheus}" in said and "ACEMATH_LOCAL__PROMETHEUS_PORT" in said


def test_the_port_of_another_service_is_not_free_either():
    settings = LocalSettings.read({"ACEMATH_LOCAL__PROMETHEUS_PORT": "8119"})
    assert "vLLM" in prometheus_off(settings)
    assert "gateway" in prometheus_off(LocalSettings.read({"ACEMATH_LOCAL__PROMETHEUS_PORT": "8080"}))


def test_absent_or_turned_off_is_said(monkeypatch):
    assert "ACEMATH_LOCAL__PROMETHEUS=off" in prometheus_off(LocalSettings.read({"ACEMATH_LOCAL__PROMETHEUS": "off"}))
    monkeypatch.setattr(preflight.shutil, "which", lambda _: None)
    assert "not installed" in prometheus_off(LocalSettings.read({}))


@pytest.mark.parametrize("config", ["/etc/prometheus/prometheus.yml", None])
def test_another_server_that_is_ready_is_not_ours(settings, config):
    with another(settings.ports.prometheus, config):
        assert "another" in prometheus_ready(settings)


@contextmanager
def real_prometheus(settings: LocalSettings, config: Path) -> Iterator[None]:
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={settings.state_dir / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{settings.ports.prometheus}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@installed
def test_a_real_one_with_our_configuration_is_ours(settings, eventually):
    with real_prometheus(settings, settings.state_dir / "run" / "prometheus.yml"):
        eventually(lambda: prometheus_ready(settings) == "", 60)
        assert f"port {settings.ports.prometheus}" in prometheus_off(settings)


@installed
def test_a_real_one_of_the_machine_is_not(settings, eventually, tmp_path):
    theirs = tmp_path / "theirs.yml"
    theirs.write_text("{}")
    with real_prometheus(settings, theirs):
        eventually(lambda: "another" in prometheus_ready(settings), 60)


def test_an_optional_service_that_does_not_start_is_off_and_the_stack_is_ready(tiny_stack, free_port, eventually):
    tiny_stack.add("door", free_port())
    script = "print('the port is taken'); raise SystemExit(1)"
    tiny_stack.add_command("extra", free_port(), f'python3 -c "{script}"', optional=True)
    tiny_stack.launch()
    said = tiny_stack.said_until_ready()
    assert "✓ door ready" in said and "READY" in said
    assert "extra is off: extra does not start: the port is taken" in said
    log = tiny_stack.directory / "extra.log"
    tries = log.read_text().count("taken")
    with pytest.raises(AssertionError):
        eventually(lambda: log.read_text().count("taken") > tries, 3)  # it is not tried for ever


def test_an_optional_service_that_never_gets_ready_is_off(tiny_stack, free_port, eventually, gone):
    tiny_stack.add("door", free_port())
    tiny_stack.add("extra", free_port(), start=60, optional=True)
    tiny_stack.ready_seconds = 3
    tiny_stack.launch()
    assert "extra is off: extra was not ready after" in tiny_stack.said_until_ready()
    eventually(lambda: gone(tiny_stack.pid("extra", "started")), 60)
