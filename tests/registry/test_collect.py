"""Removing: what anybody names, reads or may go back to stays; what goes, goes whole."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from registry.faults import run_killed_at
from registry.tiny import METADATA

from acemath_registry import ModelRef, NotFound, Registry, RejectReason, VerificationError
from acemath_registry import collect as collecting
from acemath_registry.audit import AuditEvent
from acemath_registry.collect import DAY_S, Action, Retention, Verdict
from acemath_registry.layout import Layout
from acemath_registry.verify import kept

A = Action
NOTHING_YOUNG = Retention(newest=0, age_s=0.0, grace_s=10.0)


@dataclass
class World:
    """A registry with a policy version per mark, and a clock."""

    registry: Registry
    make: Callable[..., Path]
    reward: ModelRef
    ahead: float = 5.0

    def publish(self, mark: str) -> ModelRef:
        return self.registry.publish(self.make(mark=mark), name="pol", kind="policy", metadata=METADATA)

    def promote(self, ref: ModelRef, channel: str = "default") -> str:
        release = self.registry.create_release(ref, self.reward).id
        self.registry.promote(channel, release, expected_generation=None, by="ann")
        return release

    def named(self) -> list[ModelRef]:
        channel = self.registry.channel("default")
        releases = [self.registry.release(one) for one in (channel.release, channel.previous) if one]
        return [ref for release in releases for ref in (release.policy.ref, release.reward.ref)]

    def collect(self, retention: Retention = NOTHING_YOUNG, *, apply: bool = True) -> dict[ModelRef, Verdict]:
        def now() -> float:
            return time.time() + self.ahead

        verdicts = collecting.collect(Layout(self.registry.root), retention, by="gc", apply=apply, now=now)
        return {verdict.ref: verdict for verdict in verdicts}

    def later(self, seconds: float = 60.0) -> None:
        self.ahead += seconds


@pytest.fixture
def world(registry: Registry, make_checkpoint: Callable[..., Path], reward: ModelRef) -> Iterator[World]:
    yield World(registry, make_checkpoint, reward)


def actions(verdicts: dict[ModelRef, Verdict], *refs: ModelRef) -> list[Action]:
    return [verdicts[ref].action for ref in refs]


def test_marked_then_waits_then_gone(world: World) -> None:
    unused, used = world.publish("a"), world.publish("b")
    world.promote(used)
    plan = world.collect(apply=False)
    assert actions(plan, unused, used, world.reward) == [A.MARK, A.KEEP, A.KEEP]
    assert not any(verdict.done for verdict in plan.values()) and not (world.registry.root / "tombstones").exists()
    assert actions(world.collect(), unused) == [A.MARK]
    assert actions(world.collect(), unused) == [A.WAIT]
    world.registry.verify(unused)
    world.later()
    assert actions(world.collect(apply=False), unused) == [A.REMOVE]
    world.registry.verify(unused)
    size = world.registry.manifest(unused).size
    removed = world.collect()[unused]
    assert (removed.action, removed.done, removed.size) == (A.REMOVE, True, size)
    with pytest.raises(NotFound):
        world.registry.manifest(unused)
    assert world.registry.versions() == [used, world.reward]
    assert not list(world.registry.root.glob("staging/*")) and not list(world.registry.root.glob("tombstones/*/*.json"))
    events = [(entry.event, entry.by) for entry in world.registry.log() if entry.what == str(unused)]
    assert events[1:] == [(AuditEvent.MARK, "gc"), (AuditEvent.REMOVE, "gc")]


def test_it_can_be_published_again_after_it_was_removed(world: World) -> None:
    unused = world.publish("a")
    world.collect()
    world.later()
    world.collect()
    assert world.publish("a") == unused
    world.registry.verify(unused)


def test_what_a_channel_names_or_named_lately_stays(world: World) -> None:
    refs = [world.publish(str(number)) for number in range(8)]
    for ref in refs:
        world.promote(ref)
    for _ in range(3):
        verdicts = world.collect()
        world.later()
    assert actions(verdicts, *[ref for ref in refs if ref in verdicts]) == [A.KEEP] * 5
    assert set(world.registry.versions()) == {*refs[3:], world.reward}
    assert "points at it" in verdicts[refs[7]].why and "would roll back to it" in verdicts[refs[6]].why
    assert verdicts[refs[3]].why == "channel default pointed at it lately"
    world.collect(Retention(newest=0, age_s=0, grace_s=0, history=1))
    world.later()
    world.collect(Retention(newest=0, age_s=0, grace_s=0, history=1))
    assert set(world.registry.versions()) == {*refs[6:], world.reward}, "the current one and the way back, always"
    world.registry.rollback("default", by="ann")


@pytest.mark.parametrize("service", ["policy", "gateway", "gateway-leases"])
def test_what_a_record_names_stays(world: World, service: str) -> None:
    ref = world.publish("a")
    release = world.registry.create_release(ref, world.reward).id
    document = {
        "policy": {"slots": [{"version": str(ref), "reason": f"a b@{ref.version}"}], "at": time.time()},
        "gateway": {"generation": 1, "release": release, "leases": {}, "at": 1.0},
        "gateway-leases": {"generation": 2, "release": None, "leases": {release: 0}, "at": 1.0},
    }[service]
    world.registry.write_status(service.partition("-")[0], "one", document)
    for _ in range(3):
        verdict = world.collect()[ref]
        world.later()
    assert verdict.action is A.KEEP and "status record" in verdict.why
    world.registry.write_status("forgotten-gateway", "one", {"record": document})
    world.registry.remove_status(service.partition("-")[0], "one")
    assert world.collect()[ref].action is A.MARK


@pytest.mark.parametrize("service", ["policy", "reward"])
def test_a_replica_that_is_gone_for_a_day_keeps_nothing_and_its_record_goes_with_the_version(
    world: World, service: str
) -> None:
    """Its name has its host in it, which in a cluster is another one after each start."""
    ref = world.publish("a")
    said = {"slots": [{"version": str(ref)}], "at": time.time() - world.ahead}
    for name, document in (("gone", said), ("lives", {"slots": [], "at": time.time() + 2 * DAY_S}), ("old", {})):
        world.registry.write_status(service, name, document)
    world.later(DAY_S - 60.0)
    assert world.collect()[ref].action is A.KEEP
    world.later(120.0)
    assert world.collect(Retention(0, 2 * DAY_S, 10.0))[ref].action is A.KEEP, "two days were asked for"
    assert world.collect(apply=False)[ref].action is A.MARK
    assert set(world.registry.statuses(service)) == {"gone", "lives", "old"}, "it was only shown"
    assert world.collect()[ref].action is A.MARK
    assert set(world.registry.statuses(service)) == {"gone", "lives", "old"}, "that it had it is of use to a gate"
    world.later(60.0)
    assert world.collect()[ref].action is A.REMOVE
    world.collect()
    assert set(world.registry.statuses(service)) == {"lives", "old"}


def test_a_gateway_is_waited_for_however_old_its_record(world: World) -> None:
    ref = world.publish("a")
    release = world.registry.create_release(ref, world.reward).id
    world.registry.write_status("gateway", "g", {"generation": 1, "release": release, "leases": {}, "at": 1.0})
    world.later(100 * DAY_S)
    assert world.collect()[ref].action is A.KEEP


def test_the_young_and_the_newest_stay(world: World) -> None:
    refs = [world.publish(str(number)) for number in range(4)]
    assert set(actions(world.collect(Retention(newest=0)), *refs)) == {A.KEEP}
    world.later(DAY_S + 60)
    verdicts = world.collect(Retention(newest=2))
    assert actions(verdicts, *refs) == [A.MARK, A.MARK, A.KEEP, A.KEEP]
    assert verdicts[refs[3]].why == "among the newest 2 of pol"


def test_a_mark_goes_when_somebody_names_or_publishes_it_again(world: World) -> None:
    named, published = world.publish("a"), world.publish("b")
    assert actions(world.collect(), named, published) == [A.MARK, A.MARK]
    world.promote(named)
    world.publish("b")
    world.later()
    verdicts = world.collect()
    assert actions(verdicts, named, published) == [A.UNMARK, A.MARK], "its grace begins anew"
    assert actions(world.collect(), named, published) == [A.KEEP, A.WAIT]


@pytest.mark.parametrize("apply", [False, True])
def test_what_is_published_meanwhile_is_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch, apply: bool
) -> None:
    listed, reads = [world.publish("a"), world.reward], list[ModelRef]()
    look, read = collecting.list_versions, collecting._manifest

    def publish_then(layout: Layout) -> list[ModelRef]:
        found = look(layout)
        world.publish("b")
        return found

    def count_reads(layout: Layout, ref: ModelRef) -> object:
        reads.append(ref)
        return read(layout, ref)

    monkeypatch.setattr(collecting, "list_versions", publish_then)
    monkeypatch.setattr(collecting, "_manifest", count_reads)
    assert list(world.collect(apply=apply)) == listed == reads, "each manifest is read once"


def test_what_is_being_read_stays(world: World, tmp_path: Path) -> None:
    ref = world.publish("a")
    world.collect()
    world.later()
    with kept(ref, world.registry.path(ref)):
        verdict = world.collect()[ref]
        assert (verdict.action, verdict.why) == (A.WAIT, "somebody reads it now")
        world.registry.verify(ref)
    assert world.collect()[ref].action is A.REMOVE


def test_a_copy_under_way_keeps_it(world: World, tmp_path: Path) -> None:
    ref = world.publish("a")
    world.collect()
    world.later()
    during: list[Action] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "copying" and not during:
            during.append(world.collect()[ref].action)

    world.registry.verify(ref, world.registry.private_copy(ref, tmp_path / "cache", progress=progress))
    assert during == [A.WAIT] and world.collect()[ref].action is A.REMOVE


def test_who_promotes_while_it_is_removed_finds_it_gone_or_keeps_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promotion begins when the removal has looked at all references: one of the two has to see the other."""
    ref = world.publish("a")
    release = world.registry.create_release(ref, world.reward).id
    world.collect()
    world.later()
    looked, outcome = count(), list[object]()

    def promote() -> None:
        try:
            outcome.append(world.registry.promote("default", release, expected_generation=None, by="ann"))
        except NotFound as error:
            outcome.append(error)

    thread = threading.Thread(target=promote)
    real = collecting.named_versions

    def look(layout: Layout, history: int, heard_since: float) -> dict[ModelRef, str]:
        found = real(layout, history, heard_since)
        if next(looked) == 1:
            thread.start()
            thread.join(0.3)
            assert thread.is_alive(), "it waits for the removal"
        return found

    monkeypatch.setattr(collecting, "named_versions", look)
    assert world.collect()[ref].action is A.REMOVE
    thread.join(20)
    assert isinstance(outcome[0], NotFound)
    assert world.registry.channel_names() == []


@pytest.mark.parametrize("file", ["channels/default.json", "status/gateway/g1.json", "releases/{}.json"])
def test_where_a_document_is_damaged_nothing_goes(world: World, file: str) -> None:
    unused, used = world.publish("a"), world.publish("b")
    release = world.promote(used)
    world.registry.write_status("gateway", "g1", {"generation": 1, "leases": {}, "at": 1.0})
    world.collect()
    world.later()
    (world.registry.root / file.format(release)).write_text("{")
    with pytest.raises(VerificationError):
        world.collect()
    world.registry.verify(unused)


def test_a_damaged_version_or_mark_is_left_to_people(world: World) -> None:
    damaged, marked = world.publish("a"), world.publish("b")
    (world.registry.path(damaged) / "manifest.json").write_text("{")
    verdict = world.collect()[damaged]
    assert verdict.action is A.KEEP and "remove it by hand" in verdict.why
    (world.registry.root / "tombstones" / "pol" / f"{marked.version}.json").write_text("{}")
    with pytest.raises(VerificationError) as caught:
        world.collect()
    assert caught.value.reason is RejectReason.TOMBSTONE_MALFORMED


def test_killed_at_every_second_step(world: World) -> None:
    """A version is there whole, or it is gone."""
    world.promote(world.publish("used"))
    for step in range(0, 200, 2):
        ref = world.publish(str(step))
        world.collect()
        world.later()
        killed = run_killed_at(step, world.collect)
        if ref in world.registry.versions():
            world.registry.verify(ref)
        verdicts = world.collect()
        assert ref not in verdicts or verdicts[ref].action is A.REMOVE
        assert ref not in world.registry.versions()
        if not killed:
            break
    assert not killed and step > 8


def test_what_is_named_is_never_removed_as_a_state_machine(world: World) -> None:
    """Whatever is published, promoted, rolled back, recorded and collected, in any order and at any time."""
    refs = [world.publish(f"machine-{number}") for number in range(4)]
    world.promote(refs[0])

    class Life(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.record: ModelRef | None = None
            world.registry.write_status("policy", "0", {"slots": []})

        @rule(number=st.integers(0, 3))
        def promote(self, number: int) -> None:
            world.publish(f"machine-{number}")
            world.promote(refs[number])

        @rule()
        def rollback(self) -> None:
            if world.registry.channel("default").previous is not None:
                world.registry.rollback("default", by="ann")

        @rule(number=st.integers(0, 3))
        def serve(self, number: int) -> None:
            self.record = world.publish(f"machine-{number}")
            world.registry.write_status("policy", "0", {"slots": [{"version": str(self.record)}]})

        @rule(seconds=st.sampled_from([1.0, 60.0]), apply=st.booleans())
        def collect(self, seconds: float, apply: bool) -> None:
            world.later(seconds)
            world.collect(Retention(newest=0, age_s=0.0, grace_s=10.0, history=1), apply=apply)

        @invariant()
        def nothing_that_is_named_is_missing(self) -> None:
            for ref in filter(None, (*world.named(), getattr(self, "record", None))):
                world.registry.manifest(ref)

    run_state_machine_as_test(Life, settings=settings(max_examples=15, stateful_step_count=12, deadline=None))
