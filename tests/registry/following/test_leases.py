from __future__ import annotations

import json
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acemath_core.errors import Conflict, InvalidRequest, NotFound
from acemath_registry import Registry, Release, ReleaseMember
from acemath_registry.cli import app
from acemath_registry.following import StatusLeases, forget_gateway

NOW = 1_000_000.0


def member(name: str) -> ReleaseMember:
    return ReleaseMember(name=name, version="s1-aaaaaaaaaaaa", manifest_sha256="a" * 64)


def release_of(policy: str, reward: str) -> Release:
    return Release(policy=member(policy), reward=member(reward))


OLD, NEW, SHARING = release_of("p1", "r1"), release_of("p2", "r2"), release_of("p1", "r2")


def registry_at(root: Path) -> Registry:
    """With the three releases."""
    (root / "releases").mkdir()
    for release in (OLD, NEW, SHARING):
        (root / "releases" / f"{release.id}.json").write_bytes(release.encoded())
    return Registry(root)


def holder(leases: StatusLeases) -> Awaitable[str | None]:
    """Of the old policy version, last named by generation 4."""
    return leases.holder(OLD.policy, 4, {OLD.id})


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({}, "no gateway has written a record"),
        ({"a": {"generation": 5, "leases": {}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {OLD.id: 0, NEW.id: 7}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {OLD.id: 1}, "at": NOW}}, "gateway a: it holds leases"),
        ({"a": {"generation": 5, "leases": {SHARING.id: 1}, "at": NOW}}, "gateway a: it holds leases"),
        (
            {
                "a": {"generation": 5, "release": SHARING.id, "leases": {}, "at": NOW}
            },  # it saw a promotion that we missed
            "gateway a: it still routes by generation 5",
        ),
        ({"a": {"generation": 5, "release": NEW.id, "leases": {}, "at": NOW}}, None),
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
    registry = registry_at(tmp_path)
    for name, record in records.items():
        registry.write_status("gateway", name, record)
    assert await holder(StatusLeases(registry, "default", 30, lambda: NOW)) == reason


async def test_a_release_that_cannot_be_read_may_hold_any_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "a", {"generation": 5, "release": NEW.id, "leases": {}, "at": NOW})
    leases = StatusLeases(registry, "default", 30, lambda: NOW)
    assert f"release {NEW.id} cannot be read" in str(await holder(leases))
    assert f"release {NEW.id} cannot be read" in str((await leases.usage()).unknown)


async def test_usage_is_by_version_and_by_all_gateways_together(tmp_path: Path) -> None:
    registry = registry_at(tmp_path)
    registry.write_status("gateway", "a", {"generation": 1, "release": OLD.id, "leases": {}, "at": NOW - 3})
    registry.write_status("gateway", "b", {"generation": 3, "release": NEW.id, "leases": {SHARING.id: 2}, "at": NOW})
    registry.write_status("gateway", "c", {"generation": 0, "release": None, "leases": {}, "at": NOW})  # it starts
    usage = await StatusLeases(registry, "default", 30, lambda: NOW).usage()
    assert (usage.unknown, usage.written) == (None, NOW - 3)
    assert {version: use.how for version, use in usage.users.items()} == {
        OLD.policy: "gateway a: it still routes by generation 1",
        OLD.reward: "gateway a: it still routes by generation 1",
        NEW.policy: "gateway b: it still routes by generation 3",
        NEW.reward: "gateway b: it still routes by generation 3",
    }
    assert [usage.users[version].generation for version in (OLD.policy, NEW.reward)] == [1, 3]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "no gateway has written a record"),
        ({"generation": 1, "leases": {}, "at": NOW}, "gateway a: its record does not name its release"),
        ({"generation": 1, "release": OLD.id, "leases": {}, "at": NOW + 6}, "gateway a: its clock is ahead of ours"),
        ({"generation": 1, "release": OLD.id, "leases": {}, "at": NOW - 31}, "gateway a: its record is 31 s old"),
        ({"generation": 1, "release": OLD.id, "at": NOW}, "gateway a: its record has no generation, leases and at"),
    ],
)
async def test_one_record_that_says_too_little_makes_usage_unknown(
    tmp_path: Path, record: dict[str, Any] | None, reason: str
) -> None:
    registry = registry_at(tmp_path)
    if record is not None:
        registry.write_status("gateway", "a", record)
        registry.write_status("gateway", "b", {"generation": 1, "release": OLD.id, "leases": {}, "at": NOW})
    usage = await StatusLeases(registry, "default", 30, lambda: NOW).usage()
    assert str(usage.unknown).startswith(reason) and not usage.users


@pytest.mark.parametrize("at", [NOW, NOW - 1000], ids=["alive", "killed long ago"])
async def test_gateways_on_another_channel_say_nothing_here(tmp_path: Path, at: float) -> None:
    registry = registry_at(tmp_path)
    ours = {"channel": "default", "generation": 58, "release": NEW.id, "leases": {}, "at": NOW}
    theirs = {"channel": "candidate", "generation": 2, "release": OLD.id, "leases": {OLD.id: 1}, "at": at}
    registry.write_status("gateway", "ours", ours)
    registry.write_status("gateway", "theirs", theirs)
    leases = StatusLeases(registry, "default", 30, lambda: NOW)
    usage = await leases.usage()
    assert usage.unknown is None and set(usage.users) == {NEW.policy, NEW.reward}
    assert await leases.holder(OLD.policy, 57, {OLD.id}) is None
    registry.write_status("gateway", "theirs", {key: value for key, value in theirs.items() if key != "channel"})
    assert await leases.holder(OLD.policy, 57, {OLD.id}) is not None, "one that names no channel may be ours"


async def test_an_unreadable_record_is_unknown(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "a", {"generation": 5, "leases": {}, "at": NOW})
    (tmp_path / "status" / "gateway" / "a.json").write_text("{")
    held = await holder(StatusLeases(registry, "default", 30, lambda: NOW))
    assert held is not None
    assert held.startswith("the gateways' records cannot be read")


async def test_a_gateway_that_was_killed_holds_a_version_until_somebody_says_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    leases = StatusLeases(registry, "default", 30, lambda: NOW)
    for name, at in (("alive", NOW), ("killed", NOW - 1000)):
        registry.write_status("gateway", name, {"generation": 5, "leases": {}, "at": at})
    held = await holder(leases)
    assert held is not None and held.startswith("gateway killed: its record is 1000 s old")
    record = forget_gateway(registry, "killed", by="ann", max_age_seconds=60, now=lambda: NOW)
    assert record["at"] == NOW - 1000
    assert await holder(leases) is None
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
    assert await holder(StatusLeases(registry, "default", 30, lambda: NOW)) is None


def test_the_command_forgets_an_old_record_and_refuses_a_fresh_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "killed", {"generation": 5, "leases": {}, "at": 1.0})
    registry.write_status("gateway", "alive", {"generation": 5, "leases": {}, "at": time.time()})
    options = ["--root", str(tmp_path), "--by", "ann", "--json"]
    done = CliRunner().invoke(app, ["forget-gateway", "killed", *options])
    assert done.exit_code == 0 and json.loads(done.stdout)["forgotten"] == "killed"
    refused = CliRunner().invoke(app, ["forget-gateway", "alive", *options])
    assert refused.exit_code == 1 and "it is alive" in json.loads(refused.stderr)["error"]["message"]
