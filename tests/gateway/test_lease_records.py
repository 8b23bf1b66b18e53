"""What a gateway tells of its leases, and what it reads of the channel: files and stores, on change and in time."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from gateway.releases_world import (
    A,
    World,
)
from prometheus_client import CollectorRegistry

from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.leases import LeaseLedger
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.pointer import ChannelWatch, Pointer
from acemath_registry import NotFound, Registry, Release, ReleaseMember, Served
from doubles.servers import until


def test_the_releases_that_gateways_route_by_are_in_their_records(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    one, two = (Release(policy=member("p", digit), reward=member("r", "b")) for digit in "ac")
    write_channel(tmp_path, one, 1, None)
    write_channel(tmp_path, two, 2, one.id)
    for name, generation, release in (("a", 1, one.id), ("b", 2, two.id), ("c", 2, two.id), ("starting", 0, None)):
        registry.write_status("gateway", name, {"generation": generation, "release": release, "leases": {}, "at": 0.0})
    elsewhere = {"channel": "candidate", "generation": 7, "release": one.id, "leases": {}, "at": 0.0}
    registry.write_status("gateway", "elsewhere", elsewhere)
    peers = ChannelWatch(registry, "default").peers()
    assert [(peer.generation, peer.release, peer.policy) for peer in peers] == [
        (2, two.id, "p@s1-cccccccccccc"),
        (1, one.id, "p@s1-aaaaaaaaaaaa"),
    ]


async def test_what_is_served_is_written_down_for_when_no_gateway_is_left(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    one, two = (Release(policy=member("p", digit), reward=member("r", "b")) for digit in "ac")
    write_channel(tmp_path, one, 1, None)
    write_channel(tmp_path, two, 2, one.id)
    store = StatusFileLeases(registry, instance="g", channel="default")
    await store.assert_leases(0, None, {})
    assert registry.served("default") is None
    await store.assert_leases(1, one.id, {})
    await store.withdraw()
    assert registry.statuses("gateway") == {} and registry.served("default") == Served(one.id, 1)
    (peer,) = ChannelWatch(registry, "default").peers()
    assert (peer.release, peer.generation, peer.policy) == (one.id, 1, "p@s1-aaaaaaaaaaaa")


def test_a_release_before_that_is_damaged_stops_nobody(tmp_path: Path) -> None:
    one, two = (Release(policy=member("p", digit), reward=member("r", "b")) for digit in "ac")
    write_channel(tmp_path, one, 1, None)
    write_channel(tmp_path, two, 2, one.id)
    (tmp_path / "releases" / f"{one.id}.json").write_text("{")
    assert [pointer.release for pointer in ChannelWatch(Registry(tmp_path), "default").read()] == [two.id]


async def test_run_publishes_on_change_as_heartbeat_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acemath_gateway.leases._COALESCE_SECONDS", 0.01)
    world = World(poll_seconds=0.01, heartbeat_seconds=0.05)
    running = asyncio.create_task(world.tracker.run())
    await until(lambda: world.release() is not None)
    async with world.lease("key"):
        await until(lambda: world.leases.records[-1:] == [(1, {A.release: 1})])
        assert world.leases.releases[-1] == A.release
        told = len(world.leases.records)
        await until(lambda: len(world.leases.records) > told)  # nothing changed: the heartbeat
    running.cancel()
    await asyncio.wait({running})
    assert world.leases.records[-1] == (1, {A.release: 0})


async def test_the_ledger_says_zero_for_the_last_releases_and_forgets_older_ones() -> None:
    ledger = LeaseLedger(
        stores=[],
        metrics=GatewayMetrics.on(CollectorRegistry()),
        current=lambda: None,
        canary=lambda: None,
        viewed=lambda: 0.0,
        heartbeat_seconds=1,
    )
    for number in range(20):
        with ledger.holding(f"r-{number}"):
            assert ledger.counts()[f"r-{number}"] == 1
    assert ledger.counts() == {f"r-{number}": 0 for number in range(12, 20)}


def member(name: str, digit: str) -> ReleaseMember:
    return ReleaseMember(name=name, version=f"s1-{digit * 12}", manifest_sha256=digit * 64)


def write_channel(root: Path, release: Release, generation: int, previous: str | None) -> None:
    for folder in ("releases", "channels"):
        (root / folder).mkdir(exist_ok=True, parents=True)
    (root / "releases" / f"{release.id}.json").write_bytes(release.encoded())
    channel = {
        "release": release.id,
        "release_sha256": release.sha256,
        "generation": generation,
        "previous": previous,
        "by": "test",
        "at": "2026-01-01T00:00:00Z",
    }
    temporary = root / "channels" / "default.tmp"
    temporary.write_text(json.dumps(channel))
    os.replace(temporary, root / "channels" / "default.json")


def test_the_channel_is_read_again_only_when_its_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    watch = ChannelWatch(registry, "default")
    with pytest.raises(NotFound):
        watch.read()
    one = Release(policy=member("p", "a"), reward=member("r", "b"))
    write_channel(tmp_path, one, 1, None)
    assert watch.read() == (Pointer(one.id, 1, "p@s1-aaaaaaaaaaaa", "r@s1-bbbbbbbbbbbb", "a" * 64),)
    reads: list[str] = []
    real = Registry.channel

    def counting(self: Registry, name: str) -> Any:
        reads.append(name)
        return real(self, name)

    monkeypatch.setattr(Registry, "channel", counting)
    watch.read()
    assert reads == []
    two = Release(policy=member("p", "c"), reward=member("r", "b"))
    write_channel(tmp_path, two, 2, one.id)
    newest, before = watch.read()
    assert (newest.release, newest.generation) == (two.id, 2)
    assert (before.release, before.generation) == (one.id, 1)
    assert reads == ["default"]


async def test_the_status_file_says_what_is_leased_and_goes_with_its_gateway(tmp_path: Path) -> None:
    store = StatusFileLeases(Registry(tmp_path), instance="g-0", channel="default")
    await store.assert_leases(3, A.release, {A.release: 2})
    path = tmp_path / "status/gateway/g-0.json"
    written = json.loads(path.read_text())
    assert (written["generation"], written["release"], written["leases"]) == (3, A.release, {A.release: 2})
    assert abs(written["at"] - time.time()) < 60
    await store.withdraw()
    await store.withdraw()
    assert not path.exists()


async def test_a_write_that_is_under_way_does_not_land_after_the_record_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    store, path = StatusFileLeases(registry, instance="g-0", channel="default"), tmp_path / "status/gateway/g-0.json"
    begun, go_on, write = threading.Event(), threading.Event(), registry.write_status

    def slow(*given: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        write(*given)

    monkeypatch.setattr(registry, "write_status", slow)
    writing = asyncio.create_task(store.assert_leases(3, A.release, {}))
    await asyncio.to_thread(begun.wait, 60)
    writing.cancel()
    await asyncio.wait({writing})
    with monkeypatch.context() as patch:
        patch.setattr("acemath_gateway.adapters.status_file._PATIENCE_SECONDS", 0.01)
        await store.withdraw()
    assert "forget-gateway g-0" in caplog.text, "it has a deadline"
    withdrawing = asyncio.create_task(store.withdraw())
    await asyncio.sleep(0)
    go_on.set()
    await withdrawing
    assert not path.exists() and writing.cancelled()


async def test_a_registry_that_cannot_be_written_is_said_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "status").write_text("not a folder")
    failed = list[None]()
    store = StatusFileLeases(
        Registry(tmp_path), instance="g-0", channel="default", on_failure=lambda: failed.append(None)
    )
    await store.assert_leases(1, None, {})
    await store.assert_leases(1, None, {})
    assert len([r for r in caplog.records if "leases cannot be written" in r.message]) == 1
    assert len(failed) == 2
