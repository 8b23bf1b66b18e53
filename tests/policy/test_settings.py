from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acemath_core.settings import SettingsError
from acemath_policy.__main__ import main
from acemath_policy.settings import PolicySettings, inherited_environment, is_loopback
from acemath_policy.vllm_server import command_line


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("ACEMATH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACEMATH_POLICY__REGISTRY_ROOT", str(tmp_path))
    monkeypatch.setenv("ACEMATH_POLICY__CACHE_DIR", str(tmp_path))
    return monkeypatch


def test_two_paths_are_all_that_is_needed(prefix: pytest.MonkeyPatch) -> None:
    settings = PolicySettings.from_env()
    assert (settings.port, settings.first_vllm_port, settings.last_vllm_port) == (8100, 8110, 8119)
    assert settings.vllm_command[1:] == ("-m", "vllm.entrypoints.launchers.api_server.entry")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MAX_MODEL_LENGTH", "5", "did you mean ACEMATH_POLICY__MAX_MODEL_LEN"),
        ("DTYPE", "int4", "DTYPE"),
        ("PORT", "8112", "port must lie outside"),
        ("LAST_VLLM_PORT", "8110", "two servers run during a swap"),
        ("EXTRA_ARGS", '["--trust-remote-code"]', "extra_args may not hold --trust-remote-code"),
        ("EXTRA_ARGS", '["--api-key=x"]', "extra_args may not hold --api-key"),
        ("BIND", "0.0.0.0", "set internal_key_file"),
        ("HOST", "example.org", "set internal_key_file"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(prefix: pytest.MonkeyPatch, name: str, value: str, sentence: str) -> None:
    prefix.setenv(f"ACEMATH_POLICY__{name}", value)
    with pytest.raises(SettingsError, match=sentence):
        PolicySettings.from_env()


def test_lists_are_json(prefix: pytest.MonkeyPatch) -> None:
    prefix.setenv("ACEMATH_POLICY__EXTRA_ARGS", '["--block-size", "32"]')
    assert PolicySettings.from_env().extra_args == ("--block-size", "32")


@pytest.mark.parametrize(
    ("host", "verdict"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("a.b", False)],
)
def test_loopback(host: str, verdict: bool) -> None:
    assert is_loopback(host) is verdict


def test_vllm_inherits_paths_but_no_switch_and_no_setting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "ACEMATH_GATEWAY__X",
                 "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):  # fmt: skip
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    inherited = inherited_environment()
    assert inherited["CUDA_VISIBLE_DEVICES"] == "3"
    assert "PATH" in inherited
    assert not [
        name for name in inherited if name.startswith(("ACEMATH_", "AWS_", "VLLM_SERVER", "VLLM_ALLOW", "VLLM_API"))
    ]


def test_a_wrong_setting_ends_the_start_with_status_2_and_one_line() -> None:
    environment = {"PATH": os.environ["PATH"], "ACEMATH_POLICY__PROT": "1"}
    command = [sys.executable, "-m", "acemath_policy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean ACEMATH_POLICY__PORT" in done.stderr


def test_keys_that_cannot_be_used_stop_the_start(
    prefix: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix.setenv("ACEMATH_POLICY__SIGNATURE_KEYS_FILE", str(tmp_path / "absent.pub"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "signature_keys_file: key file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "native", "expected"),
    [
        ({"cpu_kvcache_space": 1}, False, "float32"),
        ({"cpu_kvcache_space": 1}, True, "bfloat16"),
        ({}, False, "bfloat16"),  # not on a CPU, whatever this one can
        ({"cpu_kvcache_space": 1, "dtype": "bfloat16"}, False, "bfloat16"),
        ({"dtype": "auto"}, True, "auto"),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], native: bool, expected: str
) -> None:
    monkeypatch.setattr("acemath_core.processors.computes_in_bfloat16", lambda: native)
    chosen = PolicySettings(registry_root=tmp_path, cache_dir=tmp_path, **settings)
    line = command_line(chosen, model=tmp_path, name="p@s1-0", port=1)
    assert line[line.index("--dtype") + 1] == expected
