from __future__ import annotations

from pathlib import Path

import pytest

from acemath_local.environment import services_environment
from acemath_local.settings import LocalSettings, LocalSettingsError, Ports


def test_defaults_are_those_of_the_contract():
    assert LocalSettings.read({}).ports == Ports(8080, 8100, 8110, 8200, 6380, 9090)


def test_one_base_moves_every_port_and_a_named_port_wins():
    ports = LocalSettings.read({"ACEMATH_LOCAL__PORT_BASE": "18000", "ACEMATH_REWARD__PORT": "19000"}).ports
    assert ports == Ports(18000, 18001, 18010, 19000, 18003, 18004)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACEMATH_LOCAL__PORTBASE", "1", "unknown setting ACEMATH_LOCAL__PORTBASE"),
        ("ACEMATH_LOCAL__PORT_BASE", "80", "from 1024"),
        ("ACEMATH_GATEWAY__PORT", "http", "ACEMATH_GATEWAY__PORT=http"),
        ("ACEMATH_LOCAL__PROMETHEUS", "yes", "auto or off"),
    ],
)
def test_a_wrong_setting_is_named(name, value, said):
    with pytest.raises(LocalSettingsError, match=said):
        LocalSettings.read({name: value})


def test_services_are_told_of_each_other_and_the_caller_has_the_last_word(tmp_path: Path):
    settings = LocalSettings.read({"ACEMATH_LOCAL__PORT_BASE": "18000", "ACEMATH_LOCAL__STATE_DIR": str(tmp_path)})
    env = services_environment(settings, {"ACEMATH_GATEWAY__REDIS_URL": "redis://elsewhere/1", "PATH": "/bin"})
    assert env["ACEMATH_GATEWAY__REDIS_URL"] == "redis://elsewhere/1"
    assert env["ACEMATH_GATEWAY__REWARD_URLS"] == '["http://127.0.0.1:18002"]'
    assert env["ACEMATH_POLICY__REGISTRY_ROOT"] == str(tmp_path / "registry")
    assert env["PATH"] == "/bin"


def test_the_services_know_every_name_that_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from acemath_gateway.settings import GatewaySettings
    from acemath_policy.settings import PolicySettings
    from acemath_reward.settings import RewardSettings

    settings = LocalSettings.read({"ACEMATH_LOCAL__STATE_DIR": str(tmp_path), "ACEMATH_LOCAL__PORT_BASE": "18000"})
    from acemath_local.environment import prepare_state

    prepare_state(settings)
    for name, value in services_environment(settings, {}).items():
        monkeypatch.setenv(name, value)
    assert GatewaySettings.from_env().port == 18000
    assert PolicySettings.from_env().port == 18001
    assert RewardSettings.from_env().port == 18002
