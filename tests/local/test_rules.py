"""What pages: names that the services export, a file that both Prometheus read, rules that fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from acemath_core.wire import SlotState
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.jobqueue.metrics import JobMetrics
from acemath_gateway.metrics import GatewayMetrics
from acemath_local.prometheus import config
from acemath_local.settings import LocalSettings
from acemath_policy.metrics import PolicyMetrics
from acemath_registry.watch_metrics import WatchKind, WatchMetrics
from acemath_reward.metrics import RewardMetrics
from acemath_web.metrics import HttpMetrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
OPERATIONS = ROOT / "docs" / "guides" / "operations.md"
NAME = re.compile(r"\bacemath_(?:gateway|policy|reward|watch)_[a-z_]+\b")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    """The names of every service's figures as Prometheus stores them."""
    registry = CollectorRegistry()
    for figures in (GatewayMetrics, DoorMetrics, JobMetrics):
        figures.on(registry)
    PolicyMetrics(registry), RewardMetrics(registry), WatchMetrics(WatchKind.RELEASE, "default", registry)
    for service in ("gateway", "policy", "reward"):
        HttpMetrics(service, registry)
    endings = {"counter": ("_total",), "histogram": ("", "_sum", "_count", "_bucket")}
    return {family.name + end for family in registry.collect() for end in endings.get(family.type, ("",))}


def test_rules_and_guides_name_figures_that_exist():
    texts = [RULES, OPERATIONS, ROOT / "docs" / "failure-table.md"]
    named = {name for text in texts for name in NAME.findall(text.read_text())}
    assert named and named <= exported()
    states = re.findall(r'state=~?"([^"]+)"', RULES.read_text())
    assert {state for one in states for state in one.split("|")} <= {state.value for state in SlotState}


def test_every_alert_is_explained_to_who_is_on_call():
    text = OPERATIONS.read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in text] == []
    assert set(re.findall(r"`(AceMath[A-Z]\w+)`", text)) == {rule["alert"] for rule in rules()}


def test_both_prometheus_read_them():
    local = json.loads(config(LocalSettings.read({})))
    assert [Path(path) for path in local["rule_files"]] == [RULES]
    compose = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    mounted = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    assert [f"./deploy/prometheus/{name}:/etc/prometheus/{name}:ro" in mounted for name in compose["rule_files"]] == [
        True
    ]
    jobs = {job["job_name"] for job in compose["scrape_configs"]} - {"prometheus"}
    whole = set(re.findall(r'job=~"([^"]+)"', RULES.read_text())[0].split("|"))
    assert whole == jobs - {"redis", "watch"}  # of Redis the exporter answers, and a watch need not be there
    assert {job["job_name"] for job in local["scrape_configs"]} == whole


@needs_promtool
def test_the_rules_fire_when_they_should_and_not_otherwise(tmp_path: Path):
    cases = tmp_path / "rules_test.yml"
    cases.write_text(Path(__file__).with_name("rules_test.yml").read_text().replace("RULES", str(RULES)))
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(cases)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
