"""docker-compose.yml and its form for GPUs: one set of services each, all of them scraped; merged by Compose itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from acemath_gateway.settings import GatewaySettings
from acemath_policy.settings import PolicySettings
from acemath_reward.settings import RewardSettings

ROOT = Path(__file__).parents[2]
GPU = ["--env-file", "deploy/profiles/gpu.env"]
SINGLE = ["--env-file", "deploy/profiles/gpu-single.env"]
SHARDED = ["--env-file", "deploy/profiles/gpu-sharded-reward.env"]
BESIDE = {"cli": ["tools"], "watch": ["watch"]}
"""Services that are started by name only, and their profiles."""

PARTS = {"gateway": GatewaySettings, "policy": PolicySettings, "reward": RewardSettings}


class _Loader(yaml.SafeLoader):
    """Compose's own tags too."""


_Loader.add_constructor("!reset", lambda *_: None)
_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


def read(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), _Loader)


def scraped() -> set[tuple[str, int]]:
    """Host and port of everything that Prometheus is told to ask, but itself."""
    found = set()
    for job in read("deploy/prometheus/prometheus.yml")["scrape_configs"]:
        targets = [target for static in job.get("static_configs", []) for target in static["targets"]]
        for target in [f"http://{target}" for target in targets] + [
            one["url"] for one in job.get("http_sd_configs", [])
        ]:
            url = urlsplit(target)
            if url.hostname != "localhost":
                found.add((url.hostname, url.port))
    return found


def test_plain_up_starts_every_part_without_a_flag():
    services = read("docker-compose.yml")["services"]
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == BESIDE


@pytest.mark.parametrize("form", ["gpu", "gpu-sharded-reward"])
def test_a_gpu_file_replaces_services_and_adds_none(form):
    base, gpu = read("docker-compose.yml")["services"], read(f"deploy/compose/{form}.yml")["services"]
    assert set(gpu) == {"policy", "reward", "gateway"} <= set(base)
    for service in (service for service in gpu.values() if "build" in service):
        assert service["image"] not in [one.get("image") for one in base.values()]
        assert (ROOT / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("form", ["gpu", "gpu-sharded-reward"])
def test_the_gateway_may_wait_for_as_long_as_any_part_takes(form):
    """It is ready when they are: unhealthy before that, it would be taken for broken."""
    services = read(f"deploy/compose/{form}.yml")["services"]
    files = [service["build"]["dockerfile"] for service in services.values() if "build" in service]
    allowed = [int(re.findall(r"--start-period=(\d+)s", (ROOT / file).read_text())[0]) for file in files]
    assert int(services["gateway"]["healthcheck"]["start_period"].removesuffix("s")) > max(allowed)


def test_the_gateway_stops_before_what_it_asks_and_every_part_has_the_time_that_it_needs():
    services = read("docker-compose.yml")["services"]
    assert {"policy", "reward", "redis"} <= set(services["gateway"]["depends_on"])
    graces = {name: int(re.findall(r":-(\d+)s", services[name]["stop_grace_period"])[0]) for name in PARTS}
    assert graces["gateway"] > default(GatewaySettings, "drain_notice_seconds", "drain_seconds") + 5
    assert graces["policy"] >= default(PolicySettings, "shutdown_timeout_seconds") + 15
    assert graces["reward"] > default(RewardSettings, "drain_seconds") + 5


def default(settings: type[GatewaySettings | PolicySettings | RewardSettings], *names: str) -> float:
    return sum(settings.model_fields[name].default for name in names)


def test_what_a_file_sets_is_a_setting_and_stands_nowhere_that_would_win():
    wired = {key for name in PARTS for key in read("docker-compose.yml")["services"][name]["environment"]}
    for file in (ROOT / "deploy" / "compose").glob("*-*.env"):
        fields = PARTS[file.name.partition("-")[0]].model_fields
        names = re.findall(r"^(\w+)=", file.read_text(), re.MULTILINE)
        assert names and {name.rpartition("__")[2].lower() for name in names} <= set(fields), file
        assert not set(names) & wired, file


def test_redis_has_a_bound_that_it_keeps_to_by_itself():
    redis = read("docker-compose.yml")["services"]["redis"]
    assert redis["command"][-1] == "noeviction" and redis["command"][-4] == "--maxmemory"
    assert redis["command"][-3] == "${ACEMATH_REDIS_MAXMEMORY:-512mb}"
    assert redis["mem_limit"] == "${ACEMATH_REDIS_MEM_LIMIT:-1gb}"


def test_the_command_beside_the_stack_has_what_it_works_on():
    services, context = read("docker-compose.yml")["services"], (ROOT / ".dockerignore").read_text().split()
    for name in BESIDE:
        service = services[name]
        assert service["environment"]["ACEMATH_REGISTRY__ROOT"] == "/registry"
        assert "registry:/registry" in service["volumes"]
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        assert {"COPY libs/core", "COPY libs/registry", "COPY cli"} <= set(re.findall(r"COPY [\w/]+(?= /src)", text))
    assert "!cli" in context and services["watch"]["command"][:4] == ["registry", "watch", "run", "default"]


def test_an_image_has_every_distribution_of_ours_that_its_service_needs():
    """pip would ask the public index for one that is missing."""
    for service in ("policy", "reward", "gateway"):
        needed = ours(f"services/{service}")
        for file in (ROOT / "services" / service).glob("Dockerfile*"):
            text = file.read_text()
            assert {name for name in needed if f"COPY libs/{name} " not in text} == set(), file


def ours(folder: str) -> set[str]:
    """Names of our libraries that a distribution needs, directly or not."""
    listed = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]
    direct = {re.split(r"[^\w-]", name)[0].removeprefix("acemath-") for name in listed if name.startswith("acemath-")}
    return direct.union(*(ours(f"libs/{name}") for name in direct))


def test_a_sharded_reward_model_is_the_gpu_form_with_another_reward():
    sharded = read("deploy/compose/gpu-sharded-reward.yml")["services"]
    reward = sharded["reward"]
    assert reward["image"] == "acemath/reward-vllm"
    names = {name.removeprefix("ACEMATH_REWARD__").lower() for name in reward["environment"] if "__" in name}
    assert names <= set(RewardSettings.model_fields)


def test_compose_merges_the_sharded_form():
    reward = json.loads(compose(*SHARDED, "config", "--format", "json"))["services"]["reward"]
    assert reward["image"] == "acemath/reward-vllm"
    assert reward["environment"]["ACEMATH_REWARD__ENGINE"] == "vllm"
    assert reward["environment"]["ACEMATH_REWARD__DEVICE"] == "cuda"
    assert [device(*SHARDED, service=name)["count"] for name in ("policy", "reward")] == [-1, -1]


def device(*arguments: str, service: str) -> dict[str, Any]:
    """The one entry of GPUs that a service gets."""
    found = json.loads(compose(*arguments, "config", "--format", "json"))["services"][service]
    (device,) = found["deploy"]["resources"]["reservations"]["devices"]
    return device


def test_policy_and_reward_take_a_gpu_each_or_share_the_only_one():
    for form, ids, share in ((GPU, [["0"], ["1"]], 0.45), (SINGLE, [["0"], ["0"]], 0.25)):
        assert [device(*form, service=name)["device_ids"] for name in ("policy", "reward")] == ids
        policy = json.loads(compose(*form, "config", "--format", "json"))["services"]["policy"]["environment"]
        assert float(policy["ACEMATH_POLICY__GPU_MEMORY_UTILIZATION"]) == share < 0.5  # two servers in a swap


def test_a_file_of_ones_own_comes_last(tmp_path):
    shutil.copytree(ROOT / "deploy" / "compose", tmp_path / "deploy" / "compose")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / "deploy/compose/policy.local.env").write_text("ACEMATH_POLICY__MAX_MODEL_LEN=4096\n")
    (tmp_path / "deploy/compose/gateway.local.env").write_text("ACEMATH_GATEWAY__DRAIN_SECONDS=600\n")
    services = json.loads(compose("config", "--format", "json", cwd=tmp_path))["services"]
    assert services["policy"]["environment"]["ACEMATH_POLICY__MAX_MODEL_LEN"] == "4096"
    assert services["gateway"]["environment"]["ACEMATH_GATEWAY__DRAIN_SECONDS"] == "600"
    assert services["policy"]["environment"]["ACEMATH_POLICY__ENFORCE_EAGER"] == "true"


def test_the_names_that_are_scraped_and_asked_are_services():
    services = read("docker-compose.yml")["services"]
    assert {host for host, _ in scraped()} <= set(services)
    assert {"gateway", "policy", "reward", "redis-exporter"} <= {host for host, _ in scraped()}
    gateway = services["gateway"]["environment"]
    assert {urlsplit(gateway[f"ACEMATH_GATEWAY__{name}_URLS"]).hostname for name in ("POLICY", "REWARD")} <= set(
        services
    )
    assert services["policy"]["environment"]["ACEMATH_POLICY__ADVERTISE_HOST"] == "policy"


def compose(*arguments: str, cwd: Path = ROOT) -> str:
    if shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif (
        shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    ):
        command = ["docker", "compose"]
    else:
        pytest.skip("no Docker Compose on this machine")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "ACEMATH_"))}
    done = subprocess.run([*command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compose_starts_the_same_services_in_both_forms():
    plain, gpu = compose("config", "--services").split(), compose(*GPU, "config", "--services").split()
    assert sorted(plain) == sorted(gpu) == sorted(set(read("docker-compose.yml")["services"]) - set(BESIDE))
    beside = compose("--profile", "tools", "--profile", "watch", "config", "--services").split()
    assert set(beside) == {*plain, *BESIDE}


def test_compose_gives_the_gpu_form_gpus_and_takes_the_cpu_s_settings_away():
    services = json.loads(compose(*GPU, "config", "--format", "json"))["services"]
    for name in ("policy", "reward"):
        assert services[name]["image"] == f"acemath/{name}-gpu"
        assert services[name]["build"] == {"context": str(ROOT), "dockerfile": f"services/{name}/Dockerfile.gpu"}
        (given,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert given["driver"] == "nvidia" and given["capabilities"] == ["gpu"]
        assert services[name]["read_only"] is True and services[name]["cap_drop"] == ["ALL"]
    policy = services["policy"]["environment"]
    assert not {"ENFORCE_EAGER", "MAX_MODEL_LEN", "CPU_KVCACHE_SPACE"} & {key.split("__")[-1] for key in policy}
    assert policy["ACEMATH_POLICY__REGISTRY_ROOT"] == "/registry"
    assert services["reward"]["environment"]["ACEMATH_REWARD__DEVICE"] == "cuda"


def test_compose_gives_the_plain_form_none():
    services = json.loads(compose("config", "--format", "json"))["services"]
    assert [name for name, service in services.items() if "deploy" in service] == []
    assert services["policy"]["environment"]["ACEMATH_POLICY__ENFORCE_EAGER"] == "true"
