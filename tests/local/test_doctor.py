"""`acemath doctor` beside a stack that runs (real supervisor, real Redis): how it is, not that its ports are taken."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acemath_local.environment import prepare_state, socket_path
from acemath_local.lock import StackLock
from acemath_local.preflight import check_port
from acemath_local.settings import LocalSettings, Ports


@pytest.fixture
def settings(tmp_path: Path, free_port, monkeypatch) -> LocalSettings:
    for name in [name for name in os.environ if name.startswith("ACEMATH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACEMATH_LOCAL__STATE_DIR", str(tmp_path / "state"))
    ports = Ports(**{field.name: free_port() for field in dataclasses.fields(Ports)})
    found = dataclasses.replace(LocalSettings.from_env(), ports=ports)
    prepare_state(found)
    return found


@pytest.fixture
def running(settings: LocalSettings, tiny_stack, monkeypatch) -> Iterator[Any]:
    """Its ports are known to nobody but its lock."""
    tiny_stack.socket = socket_path(settings)
    with monkeypatch.context() as environment:
        environment.setenv("ACEMATH_LOCAL__REDIS_PORT", str(settings.ports.redis))
        tiny_stack.add_command("redis", settings.ports.redis, f'"{sys.executable}" -m acemath_local.redis_server')
        for name in ("policy", "reward", "gateway"):
            tiny_stack.add(name, getattr(settings.ports, name))
        with StackLock(settings.state_dir, "http://127.0.0.1:1", settings.ports):
            tiny_stack.launch()
            assert "READY" in tiny_stack.said_until_ready()
            yield tiny_stack


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acemath_cli", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_healthy_stack_is_reported_service_by_service(settings, running):
    done = doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = checks(done)
    for name in ("redis", "policy", "reward", "gateway"):
        assert f"port {getattr(settings.ports, name)}" in found[name]["seen"] and found[name]["advice"] == ""
    assert (
        "active policy@1, loading policy@2" in found["policy"]["seen"]
        and f"process {running.pid('policy')}" in found["policy"]["seen"]
    )
    assert "Valkey" in found["redis"]["seen"] or "Redis" in found["redis"]["seen"]
    assert found["Prometheus"]["seen"].startswith("off") and "acemath-local 0.1.0" in found["software"]["seen"]
    assert "is not installed" not in found["software"]["seen"]
    assert "taken" not in done.stdout and "memory are available: the stack needs" not in done.stdout
    text = doctor()
    assert text.returncode == 0 and "✓ gateway" in text.stdout


def test_a_service_that_does_not_answer_is_named_with_its_log(settings, running):
    os.kill(running.pid("policy"), signal.SIGSTOP)
    done = doctor("--json")
    assert done.returncode == 1
    found = checks(done)
    assert "not ready" in found["policy"]["advice"] and "policy.log" in found["policy"]["advice"]
    assert found["gateway"]["advice"] == ""


def test_another_s_server_at_the_port_of_a_service_that_ended_is_not_health(settings, running, eventually):
    from acemath_local.supervision import Supervisor

    supervisor = Supervisor(Path("unused"), running.socket, {}, Path("unused"))
    supervisor.stop_program("reward")
    eventually(lambda: supervisor.states()["reward"].state == "STOPPED", 60)
    command = [sys.executable, str(Path(__file__).with_name("tiny_service.py")), "theirs", str(settings.ports.reward)]
    with subprocess.Popen([*command, os.devnull]) as theirs:
        try:
            done = doctor("--json")
        finally:
            theirs.kill()
    assert done.returncode == 1 and "STOPPED" in checks(done)["reward"]["advice"]


def test_a_stack_that_is_still_starting_is_said_to(settings):
    with StackLock(settings.state_dir, "http://127.0.0.1:1", settings.ports):
        done = doctor()
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stdout and "starting or stopping" in done.stdout


def test_without_a_stack_it_is_the_preflight_and_says_where_it_looked(settings, monkeypatch):
    monkeypatch.setenv("ACEMATH_LOCAL__PORT_BASE", "39300")
    found = checks(doctor("--json"))
    assert "disk" in found and "port 39300" in found and "Prometheus" in found
    assert str(settings.state_dir) in found["looks at"]["seen"]


def test_the_stack_of_another_checkout_is_recognised_and_left_alone(settings, monkeypatch, eventually):
    port = settings.ports.gateway
    monkeypatch.setenv("ACEMATH_GATEWAY__PORT", str(port))
    command = [sys.executable, str(Path(__file__).with_name("tiny_service.py")), "theirs", str(port), os.devnull]
    with subprocess.Popen(command) as theirs:
        try:
            eventually(lambda: not check_port("gateway", port).ok, 60)
            done = doctor("--json")
        finally:
            theirs.kill()
    found = checks(done)
    assert done.returncode == 1 and not any(name.startswith("port ") for name in found)
    assert f"an AceMath gateway answers at port {port}" in found["another stack"]["seen"]
    assert "leave it running" in found["another stack"]["advice"]
    assert str(settings.state_dir) in found["another stack"]["advice"]


def test_make_doctor_beside_a_running_stack_takes_no_port_for_taken(settings):
    with StackLock(settings.state_dir, "http://127.0.0.1:1", settings.ports):
        done = subprocess.run(
            [sys.executable, "-m", "acemath_local.preflight"], capture_output=True, text=True, timeout=60, check=False
        )
    assert f"process {os.getpid()}" in done.stdout and "acemath doctor" in done.stdout
    assert "port " not in done.stdout.replace("Prometheus", "") and done.returncode == 0
