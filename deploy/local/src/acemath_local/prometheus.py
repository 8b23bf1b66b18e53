"""The scrape configuration of a Prometheus on this machine, when one is installed."""

from __future__ import annotations

import json
from pathlib import Path

from acemath_local.settings import LocalSettings

RULES = Path(__file__).resolve().parents[3] / "prometheus" / "rules.yml"
"""What pages; the compose stack's Prometheus reads the same file."""


def config(settings: LocalSettings) -> str:
    """A Prometheus configuration (JSON, which is YAML) that scrapes every part and knows what pages.

    vLLM's servers come from the agent.
    """
    ports, key = settings.ports, str(settings.state_dir / "keys" / "internal.key")
    authorization = {"credentials_file": key}
    jobs = [
        {"job_name": name, "authorization": authorization, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, port in (("gateway", ports.gateway), ("policy", ports.policy), ("reward", ports.reward))
    ]
    found = [{"url": f"http://127.0.0.1:{ports.policy}/v1/targets", "authorization": authorization}]
    jobs.append({"job_name": "vllm", "authorization": authorization, "http_sd_configs": found})
    often = {"scrape_interval": "15s", "evaluation_interval": "15s"}
    document = {"global": often, "rule_files": [str(RULES)], "scrape_configs": jobs}
    return json.dumps(document, indent=2)


def write_config(settings: LocalSettings) -> None:
    """Write it where supervisord.conf expects it."""
    config_path(settings).write_text(config(settings))


def config_path(settings: LocalSettings) -> Path:
    """Where it is; supervisord.conf names the same file, and the one that runs says so."""
    return settings.state_dir / "run" / "prometheus.yml"
