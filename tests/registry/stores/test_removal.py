"""Removing from a bucket, where nobody can lock: whoever needs a version and whoever removes it, at every moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pytest
from registry.adapters.tiny import publish_base, publish_on, write_adapter
from registry.damage import with_manifest
from registry.stores.conftest import App, Faults, at_request, refuse
from registry.tiny import METADATA

from acemath_registry import Conflict, ModelRef, NotFound, Registry, RejectReason, VerificationError
from acemath_registry.announcing import announced
from acemath_registry.collect import Action, Retention, Verdict
from acemath_registry.documents import encode
from acemath_registry.stores import removal
from acemath_registry.stores.objects import ObjectStore
from acemath_registry.stores.s3 import S3Bucket

NOW = Retention(newest=0, age_s=0.0, grace_s=0.0)
Make = Callable[..., Path]


@dataclass
class World:
    """A release whose reward version another channel keeps, and whose policy version nobody does."""

    registry: Registry
    source: Path
    reward: ModelRef
    lost: ModelRef
    release: str

    def collect(self) -> Verdict:
        found = {one.ref: one for one in self.registry.collect(NOW, by="gc", apply=True)}
        return found[self.lost]

    def publish(self) -> ModelRef:
        return self.registry.publish(self.source, name="pol", kind="policy", metadata=METADATA)

    def promote(self) -> None:
        self.registry.promote("other", self.release, expected_generation=None, by="me")

    @property
    def store(self) -> ObjectStore:
        store = self.registry._layout.store
        assert isinstance(store, ObjectStore)
        return store

    @property
    def paths(self) -> tuple[Any, Any, Any]:
        layout = self.registry._layout
        return layout.version(self.lost), layout.tombstone(self.lost), layout.staging


@pytest.fixture
def world(registry: Registry, make_checkpoint: Make) -> World:
    reward = registry.publish(make_checkpoint("reward"), name="rew", kind="reward", metadata=METADATA)
    kept = registry.publish(make_checkpoint(mark="kept"), name="pol", kind="policy", metadata=METADATA)
    registry.promote("default", registry.create_release(kept, reward).id, expected_generation=None, by="me")
    source = make_checkpoint(mark="lost")
    lost = registry.publish(source, name="pol", kind="policy", metadata=METADATA)
    made = World(registry, source, reward, lost, registry.create_release(lost, reward).id)
    assert made.collect().action is Action.MARK
    return made


def test_what_somebody_is_about_to_name_stays(world: World) -> None:
    with announced(world.registry._layout, [world.release], [world.lost]):
        verdict = world.collect()
        assert verdict.action is Action.UNMARK and "promoting" in verdict.why
    assert world.collect().action is Action.MARK
    assert world.registry.statuses("promoting") == {}


def test_what_is_being_removed_can_neither_be_promoted_nor_published(world: World) -> None:
    with world.store.removing(*world.paths) as going:
        assert going.refused is None
        for use in (world.promote, world.publish):
            with pytest.raises(Conflict, match="is being removed"):
                use()
        with world.store.removing(*world.paths) as second:
            assert second.refused == "another collection is removing it"
    world.promote()
    assert world.collect().action is Action.UNMARK, "nothing was removed, and its mark was as before"


def test_a_collector_that_was_killed_is_followed_by_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.store.removing(*world.paths) as going:
        going.go()  # and it never comes to clean
    with pytest.raises(NotFound):
        world.registry.manifest(world.lost)
    with pytest.raises(Conflict, match="is being removed"):
        world.publish()
    world.registry.collect(NOW, by="gc", apply=True)
    assert world.store.bucket.has_any(f"{world.paths[0]}/"), "it may still be at work"
    monkeypatch.setattr(removal, "DEAD_AFTER_S", -1.0)
    world.registry.collect(NOW, by="gc", apply=True)
    assert not world.store.bucket.has_any(f"{world.paths[0]}/")
    assert world.publish() == world.lost and world.registry.verify(world.lost).ref == world.lost


def test_a_collector_that_was_killed_before_it_removed_keeps_nobody_out(world: World) -> None:
    def leave(seconds_ago: float) -> None:
        document = {"at": 0.0, "by": "gc", "why": "nobody names it", "removing_since": time.time() - seconds_ago}
        world.store.replace(world.paths[1], encode(document))

    leave(1.0)
    with pytest.raises(Conflict, match="run gc again in an hour"):
        world.promote()
    world.registry.write_status("policy", "a", {"slots": [{"version": str(world.lost)}]})
    verdict = world.collect()
    assert verdict.action is Action.WAIT and "run gc again in an hour" in verdict.why
    leave(removal.DEAD_AFTER_S + 60)
    assert world.collect().action is Action.UNMARK
    leave(removal.DEAD_AFTER_S + 60)
    world.promote()
    assert world.registry.channel("other").release == world.release


def test_of_two_that_follow_a_killed_collector_one_cleans(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.store.removing(*world.paths) as going:
        going.go()
    document = json.loads(world.store.read(world.paths[1])) | {"removing_since": 0.0}
    world.store.replace(world.paths[1], encode(document))
    look = removal._is_there

    def other_comes(bucket: S3Bucket, version: PurePath) -> bool:
        world.store.replace(world.paths[1], encode(document | {"removing_since": time.time()}))
        return look(bucket, version)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "_is_there", other_comes)
        removal.sweep(world.store.bucket, world.registry._layout.root)
    assert world.store.bucket.has_any(f"{world.paths[0]}/"), "it is the other's"
    world.store.replace(world.paths[1], encode(document))
    removal.sweep(world.store.bucket, world.registry._layout.root)
    assert not world.store.bucket.has_any(f"{world.paths[0]}/")


def test_who_took_too_long_removes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal.Removal, "go", an_hour_late(removal.Removal.go))
    verdict = world.collect()
    assert verdict.action is Action.WAIT and "took too long" in verdict.why
    assert world.lost in world.registry.versions()


def an_hour_late(go: Callable[[removal.Removal], None]) -> Callable[[removal.Removal], None]:
    def late(self: removal.Removal) -> None:
        self._began -= removal.DEAD_AFTER_S
        go(self)

    return late


def test_announcements_of_the_dead_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.registry.write_status("promoting", "dead", {"names": [world.release], "at": 0.0})
    assert world.collect().action is Action.UNMARK
    monkeypatch.setattr(removal, "STALE_STAGING_S", -10.0)
    assert world.collect().action is Action.MARK and world.registry.statuses("promoting") == {}


def test_a_promotion_took_place_although_its_announcement_cannot_be_taken_back(
    world: World, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    def deny(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "DELETE":
            return None
        return refuse("403 Forbidden", "AccessDenied")(app, environ, start_response)

    faults.rule = deny
    world.promote()
    assert "stays until a collection sweeps it" in caplog.text
    assert [entry.event.value for entry in world.registry.log() if entry.what == "other"] == ["promote"]
    assert world.registry.channel("other").release == world.release


def whole_or_unnamed(world: World) -> None:
    """The channel names what is there, or does not name what is gone."""
    named = "other" in world.registry.channel_names()
    if world.lost in world.registry.versions():
        assert world.registry.verify(world.lost).ref == world.lost
    else:
        assert not named, "a channel names what was removed"


def reset(world: World) -> None:
    """As before: published, marked, on no channel of its own."""
    layout = world.registry._layout
    world.store.bucket.delete(str(layout.channel("other")))
    for key, _ in world.store.bucket.sizes(f"{layout.audit}/"):
        world.store.bucket.delete(key)  # its history would keep the version
    if world.lost not in world.registry.versions():
        world.publish()
        world.release = world.registry.create_release(world.lost, world.reward).id  # the manifest has another time
    layout.store.replace(layout.tombstone(world.lost), encode({"at": 0.0, "by": "gc", "why": "nobody names it"}))


@pytest.mark.parametrize("first", ["collect", "promote"])
def test_whoever_comes_in_between_at_any_request(world: World, first: str) -> None:
    actions: dict[str, Callable[[], object]] = {"collect": world.collect, "promote": world.promote}
    outer = actions.pop(first)
    (inner,) = actions.values()
    number, seen, outcomes = 1, [1], set[bool]()
    while number <= seen[0]:
        with at_request(world.store, number, inner) as seen, suppress(Conflict, NotFound):  # it may give way
            outer()
        whole_or_unnamed(world)
        outcomes.add(world.lost in world.registry.versions())
        reset(world)
        number += 9
    assert number > 10 and outcomes == {True, False}, "now the one was first, now the other"


def test_an_adapter_version_in_a_bucket(registry: Registry, tmp_path: Path) -> None:
    base = publish_base(registry, tmp_path / "base", shards=True)
    ref = publish_on(registry, write_adapter(tmp_path / "adapter"), base)
    manifest = registry.verify(ref)
    assert manifest.adapter is not None and manifest.adapter.base_ref == base
    copy = registry.private_copy(ref, tmp_path / "cache")
    assert registry.verify(ref, copy) == manifest
    assert [path.name for path in copy.parent.iterdir() if "partial" in path.name] == []
    layout = registry._layout
    layout.store.remove(layout.version(base) / "manifest.json")
    with pytest.raises(VerificationError) as caught:
        registry.private_copy(ref, tmp_path / "elsewhere")
    assert caught.value.reason is RejectReason.BASE_MISSING
    assert not list((tmp_path / "elsewhere").glob("*/*partial*"))


def test_a_manifest_cannot_name_a_file_elsewhere(registry: Registry, make_checkpoint: Make, tmp_path: Path) -> None:
    ref = registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)
    layout = registry._layout
    with layout.store.gathered(layout.version(ref)) as copy:
        with_manifest(lambda document: document["files"][0].update(path="../../../evil"))(copy)
        layout.store.replace(layout.version(ref) / "manifest.json", (copy / "manifest.json").read_bytes())
    for read in (registry.verify, lambda ref: registry.private_copy(ref, tmp_path / "cache")):
        with pytest.raises(VerificationError):
            read(ref)
    assert not list(tmp_path.rglob("evil"))
