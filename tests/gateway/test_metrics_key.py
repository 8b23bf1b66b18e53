"""The gateway's port is published: its figures are for the internal network, not for whoever has an API key."""

from __future__ import annotations

from pathlib import Path

import yaml

from doubles.gateway_app import GatewayOnDoubles, gateway_client

API, INTERNAL = "a" * 32, "i" * 32


def _key_file(path: Path, key: str) -> Path:
    path.write_text(key)
    path.chmod(0o600)
    return path


async def test_a_callers_key_opens_solving_and_the_internal_key_the_figures(tmp_path: Path) -> None:
    files = {
        "api_keys_file": _key_file(tmp_path / "api.key", API),
        "internal_key_file": _key_file(tmp_path / "internal.key", INTERNAL),
    }
    async with gateway_client(GatewayOnDoubles(settings=files)) as http:
        for key, models, metrics in ((API, 200, 401), (INTERNAL, 401, 200), ("wrong", 401, 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await http.get("/v1/models", headers=headers)).status_code == models
            assert (await http.get("/metrics", headers=headers)).status_code == metrics
        assert "details" not in (await http.get("/readyz?verbose")).json()


def test_prometheus_in_the_compose_stack_shows_the_internal_key() -> None:
    path = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"
    jobs = {job["job_name"]: job for job in yaml.safe_load(path.read_text())["scrape_configs"]}
    found = jobs["vllm"]["http_sd_configs"][0]["authorization"]
    assert jobs["gateway"]["authorization"] == found == {"credentials_file": "/keys/prometheus.key"}
