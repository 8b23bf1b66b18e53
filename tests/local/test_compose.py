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

from acemath_reward.settings import RewardSettings

ROOT = Path(__file__).parents[2]
GPU = ["--env-file", "deploy/profiles/gpu.env"]
SHARDED = ["--env-file", "deploy/profiles/gpu-sharded-reward.env"]


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


def test_plain_up_starts_every_service_without_a_flag():
    assert [name for name, service in read("docker-compose.yml")["services"].items() if "profiles" in service] == []


def test_the_gpu_file_replaces_services_and_adds_none():
    base, gpu = read("docker-compose.yml")["services"], read("deploy/compose/gpu.yml")["services"]
    assert set(gpu) == {"policy", "reward"} <= set(base)
    for name, service in gpu.items():
        assert service["image"] != base[name]["image"]
        assert (ROOT / service["build"]["dockerfile"]).exists()


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
    assert set(sharded) == {"policy", "reward"}
    reward = sharded["reward"]
    assert (ROOT / reward["build"]["dockerfile"]).exists() and reward["image"] == "acemath/reward-vllm"
    names = {name.removeprefix("ACEMATH_REWARD__").lower() for name in reward["environment"] if "__" in name}
    assert names <= set(RewardSettings.model_fields)


def test_compose_merges_the_sharded_form():
    reward = json.loads(compose(*SHARDED, "config", "--format", "json"))["services"]["reward"]
    assert reward["image"] == "acemath/reward-vllm"
    assert reward["environment"]["ACEMATH_REWARD__ENGINE"] == "vllm"
    assert reward["environment"]["ACEMATH_REWARD__DEVICE"] == "cuda"
    (device,) = reward["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == -1


def test_the_names_that_are_scraped_and_asked_are_services():
    services = read("docker-compose.yml")["services"]
    assert {host for host, _ in scraped()} <= set(services)
    assert {"gateway", "policy", "reward", "redis-exporter"} <= {host for host, _ in scraped()}
    gateway = services["gateway"]["environment"]
    assert {urlsplit(gateway[f"ACEMATH_GATEWAY__{name}_URLS"]).hostname for name in ("POLICY", "REWARD")} <= set(
        services
    )
    assert services["policy"]["environment"]["ACEMATH_POLICY__ADVERTISE_HOST"] == "policy"


def compose(*arguments: str) -> str:
    if shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif (
        shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    ):
        command = ["docker", "compose"]
    else:
        pytest.skip("no Docker Compose on this machine")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "ACEMATH_"))}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compose_starts_the_same_services_in_both_forms():
    plain, gpu = compose("config", "--services").split(), compose(*GPU, "config", "--services").split()
    assert sorted(plain) == sorted(gpu) == sorted(read("docker-compose.yml")["services"])


def test_compose_gives_the_gpu_form_gpus_and_takes_the_cpu_s_settings_away():
    services = json.loads(compose(*GPU, "config", "--format", "json"))["services"]
    for name in ("policy", "reward"):
        assert services[name]["image"] == f"acemath/{name}-gpu"
        assert services[name]["build"] == {"context": str(ROOT), "dockerfile": f"services/{name}/Dockerfile.gpu"}
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
        assert services[name]["read_only"] is True and services[name]["cap_drop"] == ["ALL"]
    policy = services["policy"]["environment"]
    assert not {"ENFORCE_EAGER", "MAX_MODEL_LEN", "CPU_KVCACHE_SPACE"} & {key.split("__")[-1] for key in policy}
    assert policy["ACEMATH_POLICY__REGISTRY_ROOT"] == "/registry"
    assert services["reward"]["environment"]["ACEMATH_REWARD__DEVICE"] == "cuda"


def test_compose_gives_the_plain_form_none():
    services = json.loads(compose("config", "--format", "json"))["services"]
    assert [name for name, service in services.items() if "deploy" in service] == []
    assert services["policy"]["environment"]["ACEMATH_POLICY__ENFORCE_EAGER"] == "true"
