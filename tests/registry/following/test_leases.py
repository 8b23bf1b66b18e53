from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acemath_core.errors import Conflict, InvalidRequest, NotFound
from acemath_registry import Registry
from acemath_registry.cli import app
from acemath_registry.following import StatusLeases, forget_gateway

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({}, "no gateway has written a record"),
        ({"a": {"generation": 5, "leases": {}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {"r-old": 0, "r-new": 7}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {"r-old": 1}, "at": NOW}}, "gateway a: it holds leases"),
        ({"a": {"generation": 4, "leases": {}, "at": NOW}}, "gateway a: it still routes by generation 4"),
        (
            {"a": {"generation": 5, "leases": {}, "at": NOW - 31}},
            "gateway a: its record is 31 s old; if it has ended: acemath registry forget-gateway a",
        ),
        ({"a": {"generation": 5, "at": NOW}}, "gateway a: its record has no generation, leases and at"),
        (
            {"a": {"generation": 5, "leases": {}, "at": NOW}, "b": {"generation": 4, "leases": {}, "at": NOW}},
            "gateway b: it still routes by generation 4",
        ),
    ],
)
async def test_only_complete_knowledge_lets_go(tmp_path: Path, records: dict[str, Any], reason: str | None) -> None:
    registry = Registry(tmp_path)
    for name, record in records.items():
        registry.write_status("gateway", name, record)
    assert await StatusLeases(registry, 30, lambda: NOW).holder(4, {"r-old"}) == reason


async def test_an_unreadable_record_is_unknown(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "a", {"generation": 5, "leases": {}, "at": NOW})
    (tmp_path / "status" / "gateway" / "a.json").write_text("{")
    held = await StatusLeases(registry, 30, lambda: NOW).holder(4, {"r-old"})
    assert held is not None
    assert held.startswith("the gateways' records cannot be read")


async def test_a_gateway_that_was_killed_holds_a_version_until_somebody_says_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    leases = StatusLeases(registry, 30, lambda: NOW)
    for name, at in (("alive", NOW), ("killed", NOW - 1000)):
        registry.write_status("gateway", name, {"generation": 5, "leases": {}, "at": at})
    held = await leases.holder(4, {"r-old"})
    assert held is not None and held.startswith("gateway killed: its record is 1000 s old")
    record = forget_gateway(registry, "killed", by="ann", max_age_seconds=60, now=lambda: NOW)
    assert record["at"] == NOW - 1000
    assert await leases.holder(4, {"r-old"}) is None
    audit = registry.read_status("forgotten-gateway", "killed")
    assert (audit["by"], audit["at"], audit["record"]) == ("ann", NOW, record)


def test_a_living_gateway_is_not_forgotten(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "a", {"generation": 5, "leases": {"r-old": 1}, "at": NOW - 60})
    with pytest.raises(Conflict, match="it is alive"):
        forget_gateway(registry, "a", by="ann", max_age_seconds=60, now=lambda: NOW)
    with pytest.raises(NotFound):
        forget_gateway(registry, "b", by="ann", max_age_seconds=60, now=lambda: NOW)
    for name, by in (("../../x", "ann"), ("a", " ")):
        with pytest.raises(InvalidRequest):
            forget_gateway(registry, name, by=by, max_age_seconds=60, now=lambda: NOW)
    assert registry.read_status("gateway", "a")["leases"] == {"r-old": 1}


async def test_a_damaged_record_can_be_forgotten(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "alive", {"generation": 5, "leases": {}, "at": NOW})
    (tmp_path / "status" / "gateway" / "a.json").write_text("{")
    forget_gateway(registry, "a", by="ann", max_age_seconds=60, now=lambda: NOW)
    assert await StatusLeases(registry, 30, lambda: NOW).holder(4, {"r-old"}) is None


def test_the_command_forgets_an_old_record_and_refuses_a_fresh_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "killed", {"generation": 5, "leases": {}, "at": 1.0})
    registry.write_status("gateway", "alive", {"generation": 5, "leases": {}, "at": time.time()})
    options = ["--root", str(tmp_path), "--by", "ann", "--json"]
    done = CliRunner().invoke(app, ["forget-gateway", "killed", *options])
    assert done.exit_code == 0 and json.loads(done.stdout)["forgotten"] == "killed"
    refused = CliRunner().invoke(app, ["forget-gateway", "alive", *options])
    assert refused.exit_code == 1 and "it is alive" in json.loads(refused.stderr)["error"]["message"]
