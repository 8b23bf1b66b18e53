"""Whose memory it is: every process of a stack is somebody's, and a line's slope is what grows a swap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.swaps.memory import Watch, growth, role


@pytest.mark.parametrize(
    ("command", "does"),
    [
        (["/x/vllm-place/bin/python", "-m", "acemath_gateway"], "gateway"),
        (["python", "-P", "-m", "acemath_answers.worker", "15"], "gateway's answer workers"),
        (["python", "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", "/x/acemath_reward"], "vLLM"),
        (["/x/bin/valkey-server 127.0.0.1:6380"], "Redis"),
        (["prometheus", "--log.level=warn"], "Prometheus"),
        (["VLLM::EngineCore"], None),
        (["python", "-m"], None),
        ([], None),
    ],
)
def test_a_process_is_known_by_what_it_runs(command: list[str], does: str | None) -> None:
    assert role(command) == does


def test_children_belong_to_who_started_them() -> None:
    sleeping = "import time; print(1, flush=True); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeping!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        found = Watch(parent.pid).now()
        subprocess.run(["pkill", "-P", str(parent.pid)], check=True)
    assert found["processes"] == 2 and list(found["by"]) == ["supervisor"]
    assert found["memory_mib"] == pytest.approx(found["by"]["supervisor"], abs=1) and found["memory_mib"] > 5


def test_growth_by_role() -> None:
    samples = [{"by": {"gateway": 100.0 + 2 * i, "vLLM": 500.0}} for i in range(8)]
    assert growth(samples) == {
        "gateway": {"first": 101.0, "last": 113.0, "mib_a_swap": 2.0},
        "vLLM": {"first": 500.0, "last": 500.0, "mib_a_swap": 0.0},
    }
    assert growth(samples[:3]) == {}
