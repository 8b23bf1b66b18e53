from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loopback_ports import free_run
from reward.publishing import promote, publish_reward
from reward.serving import wait_for, wait_until_ready

from acemath_core.settings import SettingsError
from acemath_registry import Registry
from acemath_reward.settings import RewardSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("ACEMATH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACEMATH_REWARD__REGISTRY_ROOT", str(tmp_path / "registry"))
    monkeypatch.setenv("ACEMATH_REWARD__CACHE_DIR", str(tmp_path / "cache"))
    yield


def test_two_paths_are_enough() -> None:
    settings = RewardSettings.from_env()
    assert (settings.host, settings.port, settings.device, settings.threads) == ("127.0.0.1", 8200, "cpu", 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("THREDS", "2", "ACEMATH_REWARD__THREADS"),
        ("PORT", "70000", "PORT"),
        ("DTYPE", "int8", "DTYPE"),
        ("DEVICE", "tpu", "DEVICE"),
        ("HOST", "0.0.0.0", "internal_key_file"),
        ("BATCH_TOKENS", "0", "BATCH_TOKENS"),
    ],
)
def test_a_wrong_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(f"ACEMATH_REWARD__{name}", value)
    with pytest.raises(SettingsError, match=said):
        RewardSettings.from_env()


def test_the_process_says_what_is_wrong_and_ends_with_2() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "acemath_reward"],
        env={**os.environ, "ACEMATH_REWARD__THREDS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("acemath-reward: unknown setting ACEMATH_REWARD__THREDS")
    assert "Traceback" not in ended.stderr


def test_the_process_serves_a_checkpoint_and_ends_on_term(llama: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish_reward(registry, llama)
    promote(registry, version, tmp_path)
    port = free_run()
    environment = {**os.environ, "ACEMATH_REWARD__PORT": str(port), "ACEMATH_REWARD__POLL_SECONDS": "0.1"}
    process = subprocess.Popen([sys.executable, "-m", "acemath_reward"], env=environment, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, verify=False, timeout=60) as client:
            wait_until_ready(url, 120)
            answer = client.post("/v1/score", json={"problem": "1 + 1?", "candidates": ["2", "3"]})
            assert answer.status_code == 200 and answer.json()["model"] == str(version)
            details = client.get("/readyz?verbose").json()["details"]["versions"][str(version)]
            assert details["batch_invariant"] is True and details["threads"] == 1
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: process.poll() is not None, 30)
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait(10)
