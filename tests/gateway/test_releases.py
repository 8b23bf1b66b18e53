from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from acemath_core.errors import ErrorCode, ServiceError, Unavailable
from acemath_core.wire import Slot, SlotState
from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.leases import LeaseLedger
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.pointer import ChannelWatch, Pointer
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.releases import ReleaseTracker
from acemath_gateway.replicas import ReplicaWatch
from acemath_registry import NotFound, Registry, Release, ReleaseMember
from doubles.ports import MemoryLeases, ScriptedSlots
from doubles.servers import until

A = Pointer("r-aaaaaaaaaaaa", 1, "p@s1-aaaaaaaaaaaa", "r@s1-aaaaaaaaaaaa", "0" * 64)
B = Pointer("r-bbbbbbbbbbbb", 2, "p@s2-bbbbbbbbbbbb", "r@s2-bbbbbbbbbbbb", "1" * 64)
C = Pointer("r-cccccccccccc", 3, "p@s3-cccccccccccc", "r@s3-cccccccccccc", "2" * 64)
P1, P2, R1, R2 = "http://p1", "http://p2", "http://r1", "http://r2"
ACTIVE, READY, STAGING, DRAINING, REJECTED = (
    SlotState.ACTIVE,
    SlotState.READY,
    SlotState.STAGING,
    SlotState.DRAINING,
    SlotState.REJECTED,
)


@dataclass
class Channel:
    pointers: tuple[Pointer, ...] = (A,)
    error: ServiceError | None = None
    reads: int = 0
    others: tuple[Pointer, ...] = ()

    def read(self) -> tuple[Pointer, ...]:
        self.reads += 1
        if self.error:
            raise self.error
        return self.pointers

    def peers(self) -> tuple[Pointer, ...]:
        return self.others


@dataclass
class Encoders:
    error: Exception | None = None
    loaded: list[tuple[str, str | None]] = field(default_factory=list)

    async def load(self, version: str, *, manifest_sha256: str | None) -> None:
        self.loaded.append((version, manifest_sha256))
        if self.error:
            raise self.error


class World:
    """Two policy agents and two reward services that serve release A, and a tracker that follows them."""

    def __init__(self, **options: Any) -> None:
        self.channel, self.encoders, self.leases = Channel(), Encoders(), MemoryLeases()
        self.slots = ScriptedSlots(
            states={P1: {A.policy: ACTIVE}, P2: {A.policy: ACTIVE}, R1: {A.reward: ACTIVE}, R2: {A.reward: ACTIVE}},
            endpoints={P1: "http://v1/", P2: "http://v2"},
            lengths={"http://v1": 2048, "http://v2": 1024},
        )
        self.registry = CollectorRegistry()
        self.tracker = ReleaseTracker(
            channel=cast(ChannelWatch, self.channel),
            slots=self.slots,
            policy_urls=[P1, P2],
            reward_urls=[R1, R2],
            encoders=cast(RegistryEncoders, self.encoders),
            stores=[self.leases],
            metrics=GatewayMetrics.on(self.registry),
            **({"start_grace_seconds": 3600.0} | options),
        )

    def everywhere(self, pointer: Pointer, state: SlotState) -> None:
        for url in (P1, P2):
            self.slots.states[url][pointer.policy] = state
        for url in (R1, R2):
            self.slots.states[url][pointer.reward] = state

    def release(self) -> str | None:
        current = self.tracker.current()
        return current.release if current else None

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"acemath_gateway_{name}", labels)


async def test_before_the_first_poll_nothing_is_leased() -> None:
    world = World()
    assert not world.tracker.readiness().ready
    with pytest.raises(Unavailable) as caught:
        async with world.tracker.lease():
            pass
    assert caught.value.code is ErrorCode.NOT_READY


async def test_the_first_release_is_taken_when_every_replica_is_ready() -> None:
    world = World()
    world.slots.states[R2] = {A.reward: STAGING}
    await world.tracker.poll()
    assert world.release() is None
    assert "http://r2 has r@s1-aaaaaaaaaaaa in state staging" in world.tracker.readiness().reason
    world.slots.states[R2] = {A.reward: READY}
    await world.tracker.poll()
    target = world.tracker.current()
    assert target is not None
    assert (target.release, target.generation) == (A.release, 1)
    assert target.policy_endpoints == ("http://v1", "http://v2")
    assert target.reward_endpoints == (R1, R2)
    assert target.context_length == 1024
    assert world.tracker.readiness().ready
    assert world.encoders.loaded == [(A.policy, A.policy_manifest_sha256)]
    assert world.metric("model_info", role="policy", version=A.policy) == 1


@pytest.mark.parametrize("url", [P1, P2, R1, R2])
@pytest.mark.parametrize("state", [None, STAGING, REJECTED, DRAINING])
async def test_a_release_that_one_replica_lacks_changes_nothing(url: str, state: SlotState | None) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    version = B.policy if url in (P1, P2) else B.reward
    if state is None:
        del world.slots.states[url][version]
    else:
        world.slots.states[url][version] = state
    await world.tracker.poll()
    assert world.release() == A.release
    readiness = world.tracker.readiness()
    assert readiness.ready
    assert url in str(readiness.details["problem"])
    world.slots.states[url][version] = READY
    await world.tracker.poll()
    assert world.release() == B.release


async def test_a_release_that_drains_everywhere_is_never_flipped_to_although_it_serves() -> None:
    world = World()
    await world.tracker.poll()
    world.everywhere(B, DRAINING)  # it was given up for the release after it
    for pointers in ((B, A), (C, B)):
        world.channel.pointers = pointers
        await world.tracker.poll()
        assert world.release() == A.release
    world.everywhere(C, READY)
    await world.tracker.poll()
    assert world.release() == C.release


async def test_a_gateway_that_was_slower_than_the_channel_steps_forward_to_what_another_routes_by() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (C, B)
    world.everywhere(B, ACTIVE)
    await world.tracker.poll()
    assert world.release() == A.release, "nobody uses it, and it is no longer named"
    world.channel.others = (B, A)  # another gateway flipped to it, and the version before it is kept for this one
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None and (current.release, current.generation) == (B.release, 2)
    assert C.policy in str(world.tracker.readiness().details["problem"])
    world.channel.others = (replace(A, generation=9), A)
    await world.tracker.poll()
    assert world.release() == B.release, "never a step back, nor past the channel"


def test_the_releases_that_gateways_route_by_are_in_their_records(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    one, two = (Release(policy=member("p", digit), reward=member("r", "b")) for digit in "ac")
    write_channel(tmp_path, one, 1, None)
    write_channel(tmp_path, two, 2, one.id)
    for name, generation, release in (("a", 1, one.id), ("b", 2, two.id), ("c", 2, two.id), ("starting", 0, None)):
        registry.write_status("gateway", name, {"generation": generation, "release": release, "leases": {}, "at": 0.0})
    peers = ChannelWatch(registry, "default").peers()
    assert [(peer.generation, peer.release, peer.policy) for peer in peers] == [
        (2, two.id, "p@s1-cccccccccccc"),
        (1, one.id, "p@s1-aaaaaaaaaaaa"),
    ]


async def test_a_view_that_took_too_long_flips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    monkeypatch.setattr("acemath_gateway.releases._VIEW_SECONDS", -1.0)
    await world.tracker.poll()
    assert world.release() == A.release
    assert "too old by now" in str(world.tracker.readiness().details["problem"])
    monkeypatch.undo()
    await world.tracker.poll()
    assert world.release() == B.release


async def test_a_silent_replica_keeps_a_new_release_from_being_taken() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    del world.slots.states[R1]
    await world.tracker.poll()
    assert world.release() == A.release


@pytest.mark.parametrize("error", [NotFound("gone"), ValueError("bad tokenizer"), OSError("io")])
async def test_a_release_whose_tokenizer_cannot_be_read_is_not_taken(error: Exception) -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    world.encoders.error = error
    await world.tracker.poll()
    assert world.release() == A.release
    assert str(error) in str(world.tracker.readiness().details["problem"])


async def test_a_release_whose_server_does_not_answer_to_us_is_not_taken() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (B, A)
    world.everywhere(B, READY)
    world.slots.lengths.clear()
    await world.tracker.poll()
    assert world.release() == A.release


async def test_a_job_keeps_its_release_over_a_flip() -> None:
    world = World()
    await world.tracker.poll()
    async with world.tracker.lease() as old:
        world.channel.pointers = (B, A)
        world.everywhere(B, READY)
        await world.tracker.poll()
        async with world.tracker.lease() as new:
            assert (old.release, new.release) == (A.release, B.release)
            assert (old.policy, old.reward) == (A.policy, A.reward)
            assert world.metric("leases", age="old") == world.metric("leases", age="current") == 1
    assert world.metric("leases", age="old") == 0
    assert world.metric("model_info", role="policy", version=A.policy) is None


async def test_going_back_is_a_new_generation_of_the_old_release() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.pointers = (replace(A, generation=3), replace(B, generation=2))
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert (current.release, current.generation) == (A.release, 3)
    assert world.metric("release_generation") == 3


async def test_a_replica_that_is_down_leaves_the_target_and_comes_back() -> None:
    world = World()
    await world.tracker.poll()
    gone = world.slots.states.pop(P1)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v1", "http://v2")  # one missed answer is not yet an outage
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v2",)
    world.slots.states[P1] = gone
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v1", "http://v2")


async def test_without_any_policy_server_nothing_is_leased_and_without_reward_it_is_not_ready() -> None:
    world = World()
    await world.tracker.poll()
    del world.slots.states[R1], world.slots.states[R2]
    for _ in range(2):
        await world.tracker.poll()
    assert world.tracker.readiness().reason == "no reward service answers"
    async with world.tracker.lease() as target:
        assert target.reward_endpoints == ()
    del world.slots.states[P1], world.slots.states[P2]
    for _ in range(2):
        await world.tracker.poll()
    assert world.tracker.serving() is None
    with pytest.raises(Unavailable) as caught:
        async with world.tracker.lease():
            pass
    assert caught.value.code is ErrorCode.POLICY_UNAVAILABLE


async def test_the_current_release_is_used_while_a_replica_already_drains_it() -> None:
    world = World()
    await world.tracker.poll()
    world.slots.states[P1][A.policy] = DRAINING
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert len(current.policy_endpoints) == 2


async def test_a_starting_gateway_gives_up_waiting_for_a_dead_replica() -> None:
    world = World(start_grace_seconds=0.0)
    del world.slots.states[P1]
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert current.policy_endpoints == ("http://v2",)


async def test_a_starting_gateway_takes_the_release_before_a_bad_one() -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers = (B, replace(A, generation=1))
    world.everywhere(B, REJECTED)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None
    assert (current.release, current.generation) == (A.release, 1)
    world.everywhere(B, READY)
    await world.tracker.poll()
    assert world.release() == B.release


@pytest.mark.parametrize("newest", [STAGING, None])
async def test_a_starting_gateway_takes_a_draining_release_only_where_the_newest_took_its_place(
    newest: SlotState | None,
) -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers = (B, A)
    for url in (P1, P2):
        world.slots.states[url] = {A.policy: DRAINING} | ({B.policy: newest} if newest else {})
    await world.tracker.poll()
    assert world.release() == (A.release if newest else None), "what is given up may be stopped at any moment"


async def test_a_starting_gateway_takes_what_another_one_routes_by_when_the_last_two_are_not_there() -> None:
    world = World(start_grace_seconds=0.0)
    world.channel.pointers, world.channel.others = (C, B), (A,)
    await world.tracker.poll()
    current = world.tracker.current()
    assert current is not None and (current.release, current.generation) == (A.release, 1)


async def test_a_version_that_is_brought_up_again_counts_and_not_what_it_was_before() -> None:
    before, now = (Slot(version=A.policy, state=state, since=0.0) for state in (SlotState.RETIRED, READY))

    class Twice(ScriptedSlots):
        async def slots(self, url: str) -> tuple[Slot, ...]:
            return before, now

    watch = ReplicaWatch(Twice(), [P1])
    await watch.refresh()
    assert watch.slot(P1, A.policy) == now


async def test_a_starting_gateway_does_not_start_on_nothing() -> None:
    world = World(start_grace_seconds=0.0)
    world.slots.states.clear()
    await world.tracker.poll()
    assert world.release() is None
    assert not world.tracker.readiness().ready


async def test_an_unreadable_channel_changes_nothing() -> None:
    world = World()
    await world.tracker.poll()
    world.channel.error = Unavailable("mount is gone")
    await world.tracker.poll()
    assert world.release() == A.release
    assert world.tracker.readiness().ready
    assert world.metric("release_polls_failed_total") == 1


async def test_run_publishes_on_change_as_heartbeat_and_at_the_end() -> None:
    world = World(poll_seconds=0.01, heartbeat_seconds=0.05)
    running = asyncio.create_task(world.tracker.run())
    await until(lambda: world.release() is not None)
    async with world.tracker.lease():
        await until(lambda: world.leases.records[-1:] == [(1, {A.release: 1})])
        assert world.leases.releases[-1] == A.release
        told = len(world.leases.records)
        await until(lambda: len(world.leases.records) > told)  # nothing changed: the heartbeat
    running.cancel()
    await asyncio.wait({running})
    assert world.leases.records[-1] == (1, {A.release: 0})


async def test_a_bug_in_a_poll_does_not_end_the_tracker() -> None:
    world = World(poll_seconds=0.01)
    world.channel.error = cast(ServiceError, ZeroDivisionError())
    running = asyncio.create_task(world.tracker.run())
    await until(lambda: world.channel.reads > 2)
    assert world.release() is None
    world.channel.error = None
    await until(lambda: world.release() == A.release)
    running.cancel()
    await asyncio.wait({running})


async def test_the_ledger_says_zero_for_the_last_releases_and_forgets_older_ones() -> None:
    ledger = LeaseLedger(
        stores=[], metrics=GatewayMetrics.on(CollectorRegistry()), current=lambda: None, heartbeat_seconds=1
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
    store = StatusFileLeases(Registry(tmp_path), instance="g-0")
    await store.assert_leases(3, A.release, {A.release: 2})
    path = tmp_path / "status/gateway/g-0.json"
    written = json.loads(path.read_text())
    assert (written["generation"], written["release"], written["leases"]) == (3, A.release, {A.release: 2})
    assert abs(written["at"] - time.time()) < 60
    await store.withdraw()
    await store.withdraw()
    assert not path.exists()


async def test_a_registry_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "status").write_text("not a folder")
    store = StatusFileLeases(Registry(tmp_path), instance="g-0")
    await store.assert_leases(1, None, {})
    await store.assert_leases(1, None, {})
    assert len([r for r in caplog.records if "leases cannot be written" in r.message]) == 1
