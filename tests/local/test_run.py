"""`make run` for real: vLLM, reward model, gateway and Redis on ports of their own; solved, hurt, healed, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loopback_ports import free_run

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


# A killed test session must not leave a stack behind either.
TETHERED = [sys.executable, "-m", "acemath_local.tether", f"TERM:{os.getpid()}", "--", sys.executable]


class Run:
    """A runner in a session of its own; everything it printed; every process that it ever had."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        self.env, self.lines, self.family = env, list[str](), dict[int, psutil.Process]()
        self.process = subprocess.Popen(
            [*TETHERED, "-m", "acemath_local.run", *arguments],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip() for line in self.process.stdout)

    def wait_for(self, text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not any(text in line for line in list(self.lines)):
            assert self.process.poll() is None, "\n".join(self.lines[-30:])
            assert time.monotonic() < deadline, "\n".join(self.lines[-30:])
            time.sleep(0.2)
        self.remember()

    def remember(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.family[child.pid] = child

    def close(self) -> None:
        """Kill by id whatever is left, so that a failed test leaves nothing behind."""
        for process in [*self.family.values()]:
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    state = tmp_path_factory.mktemp("state")
    wheels = ROOT / ".local" / "cache" / "base-model"
    if wheels.is_dir():  # 93 MB that are the same for every state folder
        (state / "cache").mkdir()
        (state / "cache" / "base-model").symlink_to(wheels)
    local = {"STATE_DIR": str(state), "PORT_BASE": str(free_run(20)), "PROMETHEUS": "off"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACEMATH_")}
    return kept | {f"ACEMATH_LOCAL__{name}": value for name, value in local.items()}


@pytest.fixture(scope="module")
def running(env: dict[str, str]) -> Iterator[Run]:
    run = Run(env)
    try:
        run.wait_for("Serving at", 600)
        yield run
    finally:
        run.close()


def call(run: Run, path: str) -> int:
    url = f"http://127.0.0.1:{run.env['ACEMATH_LOCAL__PORT_BASE']}{path}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)


def solve(env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "acemath_local.solve",
        "What is 7 + 5?",
        "--n",
        "2",
        "--max-tokens",
        "64",
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False)


def run_to_its_end(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acemath_local.run"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_it_comes_up_in_order_and_shows_a_solved_problem(running):
    text = "\n".join(running.lines)
    order = [text.index(f"✓ {name} ready") for name in ("redis", "gateway")]
    assert (
        order == sorted(order) and text.index("✓ policy ready") < order[1] and text.index("✓ reward ready") < order[1]
    )
    assert "answer: " in text and "candidates by score" in text
    assert call(running, "/readyz") == 200


def test_another_problem_can_be_asked(running):
    result = solve(running.env, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["n_scored"] == 2 and answer["models"]["policy"].startswith("acemath-embedded-policy@")


def test_a_second_run_of_the_same_state_is_refused_and_hurts_nothing(running):
    second = run_to_its_end(running.env)
    assert second.returncode == 1 and "running already" in second.stdout
    assert call(running, "/readyz") == 200


def test_another_stack_on_taken_ports_is_refused_before_it_starts_anything(running, tmp_path):
    env = running.env | {"ACEMATH_LOCAL__STATE_DIR": str(tmp_path / "other")}
    second = run_to_its_end(env)
    assert second.returncode == 1 and "an AceMath gateway answers at port" in second.stdout
    assert not (tmp_path / "other" / "registry").exists()


def test_a_killed_reward_service_comes_back_and_the_others_never_ended(running, eventually):
    running.remember()
    before = {service_of(process): process.pid for process in running.family.values() if service_of(process)}
    os.kill(before["acemath_reward"], signal.SIGKILL)
    eventually(lambda: solve(running.env, "--json").returncode == 0, 120)
    running.remember()
    after = {service_of(p): p.pid for p in running.family.values() if p.is_running() and service_of(p)}
    assert after["acemath_reward"] != before["acemath_reward"]
    for name in ("acemath_gateway", "acemath_policy"):
        assert after[name] == before[name]


def test_ctrl_c_stops_everything_in_order(running, gone):
    running.remember()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(200) == 0
    assert [pid for pid in running.family if not gone(pid)] == []
    assert any("✓ stopping" in line for line in running.lines)


def test_killing_the_runner_leaves_no_process(env, eventually, gone):
    run = Run(env, "--no-sample")
    try:
        run.wait_for("Serving at", 300)
        run.remember()
        os.kill(run.process.pid, signal.SIGKILL)
        eventually(lambda: all(gone(pid) for pid in run.family), 200)
    finally:
        run.close()


def service_of(process: psutil.Process) -> str:
    """Which of our services a process is: `python -m acemath_x`."""
    try:
        line = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
    return line[2] if line[1:2] == ["-m"] and len(line) > 2 and line[2] != "acemath_local.tether" else ""
