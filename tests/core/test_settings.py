from __future__ import annotations

import re
from pathlib import Path

import pytest

from acemath_core.settings import HttpServiceSettings, ServiceSettings, SettingsError, read_key_file, settings_config


class _Settings(ServiceSettings):
    model_config = settings_config("ACEMATH_PROBE__")
    port: int = 1
    host: str = "127.0.0.1"


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_PROBE__PORT", "8123")
    assert _Settings.from_env().port == 8123


def test_a_mistyped_name_stops_the_start_and_suggests_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_PROBE__PROT", "8123")
    with pytest.raises(SettingsError, match=r"ACEMATH_PROBE__PROT; did you mean ACEMATH_PROBE__PORT\?"):
        _Settings.from_env()


def test_names_of_other_processes_and_of_kubernetes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_OTHER__X", "1")
    monkeypatch.setenv("ACEMATH_PROBE_PORT", "tcp://10.0.0.1:80")
    assert _Settings.from_env().port == 1


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEMATH_PROBE__PORT", "eighty")
    with pytest.raises(SettingsError, match="ACEMATH_PROBE__PORT"):
        _Settings.from_env()


@pytest.mark.parametrize(("mode", "text", "says"), [(0o644, "k", "readable by others"), (0o600, " \n", "empty")])
def test_a_bad_key_file_is_refused(tmp_path: Path, mode: int, text: str, says: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=says):
        read_key_file(path)


def test_a_key_cannot_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    key = read_key_file(path)
    assert "s3cret" not in repr(key)
    assert key.get_secret_value() == "s3cret"


class _Service(HttpServiceSettings):
    model_config = settings_config("ACEMATH_PROBE__")
    port: int = 1


def test_replicas_on_one_host_have_names_of_their_own(tmp_path: Path) -> None:
    names = {_Service(port=port, registry_root=tmp_path).instance for port in (8100, 8101)}
    assert len(names) == 2 and all(re.fullmatch(r"[\w.-]{1,64}", name) for name in names)
    assert _Service(registry_root=tmp_path, instance="policy").instance == "policy"
