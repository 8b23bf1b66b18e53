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
from pydantic import SecretStr
from reward.publishing import promote, publish_reward
from reward.serving import wait_for, wait_until_ready
from reward.tiny import write_checkpoint

from acemath_core.processes.vllm import environment
from acemath_core.settings import SettingsError
from acemath_registry import Registry
from acemath_reward.engine.config import read_config
from acemath_reward.pooled.command import command_line
from acemath_reward.settings import EngineKind, RewardSettings


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"TENSOR_PARALLEL_SIZE": "4"}, "engine=torch on cpu has no tensor_parallel_size"),
        ({"ENGINE": "vllm", "ROW_TILE": "64"}, "engine=vllm on cpu has no row_tile"),
        ({"ENGINE": "vllm", "DEVICE": "cuda", "THREADS": "2"}, "engine=vllm on cuda has no threads"),
        ({"ENGINE": "vllm", "DEVICE": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"ENGINE": "vllm", "LAST_VLLM_PORT": "8210"}, "two servers run during a swap"),
        ({"ENGINE": "vllm", "PORT": "8215"}, "port must lie outside"),
        ({"ENGINE": "vllm", "EXTRA_ARGS": '["--runner=generate"]'}, "extra_args may not hold --runner"),
        ({"ENGINE": "vllm", "EXTRA_ARGS": '["--host", "0.0.0.0"]'}, "extra_args may not hold --host"),
        ({"ENGINE": "sglang"}, "'torch' or 'vllm'"),
    ],
)
def test_what_an_engine_has_no_use_for_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"ACEMATH_REWARD__{name}", value)
    with pytest.raises(SettingsError, match=said):
        RewardSettings.from_env()


@pytest.mark.parametrize(("native", "expected"), [(False, "float32"), (True, "bfloat16")])
def test_servers_on_a_cpu_compute_in_what_it_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool, expected: str
) -> None:
    monkeypatch.setattr("acemath_core.processors.computes_in_bfloat16", lambda: native)
    settings = RewardSettings(registry_root=tmp_path, cache_dir=tmp_path, engine=EngineKind.VLLM)
    config = read_config(write_checkpoint(tmp_path / "export", "qwen2"))
    line = command_line(settings, model=tmp_path, name="r@s1-0", port=8210, config=config)
    assert line[line.index("--dtype") + 1] == expected


def test_a_model_over_four_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = {"ENGINE": "vllm", "DEVICE": "cuda", "TENSOR_PARALLEL_SIZE": "4", "GPU_MEMORY_UTILIZATION": "0.45"}
    for name, value in (chosen | {"EXTRA_ARGS": '["--disable-custom-all-reduce"]'}).items():
        monkeypatch.setenv(f"ACEMATH_REWARD__{name}", value)
    settings = RewardSettings.from_env()
    config = read_config(write_checkpoint(tmp_path / "export", "qwen2", max_position_embeddings=4096))
    line = command_line(settings, model=tmp_path, name="r@s1-0", port=8210, config=config)
    assert ("--runner pooling --convert classify --host 127.0.0.1 --port 8210 --dtype bfloat16") in " ".join(line)
    assert "--tensor-parallel-size 4 --max-model-len 4096 --max-num-batched-tokens 4096" in " ".join(line)
    assert "--gpu-memory-utilization 0.45" in " ".join(line) and line[-1] == "--disable-custom-all-reduce"
    key = SecretStr("a secret")
    made = environment(settings, {"ACEMATH_X": "1"}, key)
    assert made["VLLM_API_KEY"] == "a secret" and "a secret" not in " ".join(line)
    assert "OMP_NUM_THREADS" not in made, "on GPUs vLLM binds its own threads"


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
