"""What a registry may rely on, whatever it lies on: the same tests for a file system and for a real S3 server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry.tiny import METADATA

from acemath_core.errors import Conflict
from acemath_registry import Channel, ModelRef, NotFound, Registry, VerificationError
from acemath_registry.audit import AuditEvent
from acemath_registry.collect import Action, Retention
from acemath_registry.layout import Layout
from acemath_registry.moves import promote as promote_on
from acemath_registry.stores import Overtaken

NOW = Retention(newest=0, age_s=0.0, grace_s=0.0)


def test_a_document_is_written_replaced_listed_and_removed(layout: Layout) -> None:
    store, path = layout.store, layout.status("policy", "a")
    assert store.names(path.parent) == [] and store.folders(layout.statuses) == [] and store.mark(path) is None
    with pytest.raises(FileNotFoundError):
        store.read(path)
    store.replace(path, b"one")
    first = store.mark(path)
    assert store.read(path) == b"one" and store.mark(path) == first is not None
    store.replace(path, b"two")
    assert store.read(path) == b"two" and store.mark(path) != first
    assert not store.create(path, b"three") and store.create(layout.status("policy", "b"), b"{}")
    assert store.names(path.parent) == ["a", "b"] and store.folders(layout.statuses) == ["policy"]
    store.remove(path)
    assert store.names(path.parent) == ["b"]
    with pytest.raises(FileNotFoundError):
        store.remove(path)


def test_of_many_changes_at_once_none_is_lost(layout: Layout) -> None:
    path, lock = layout.channel("counter"), layout.channel_lock("counter")

    def add() -> None:
        while True:
            try:
                with layout.store.changing(path, lock) as change:
                    change.write(str(int(change.read() or b"0") + 1).encode())
                return
            except Overtaken:
                continue

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(add) for _ in range(20)]:
            done.result()
    assert layout.store.read(path) == b"20"


def test_lines_of_many_writers_all_stay_in_order(layout: Layout) -> None:
    def write(number: int) -> None:
        for line in range(5):
            layout.store.append(layout.audit, layout.audit_lock, f"{number} {line}\n".encode())

    assert layout.store.tail(layout.audit, 1 << 20) == []
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    lines = [tuple(map(int, line.split())) for line in layout.store.tail(layout.audit, 1 << 20)]
    assert sorted(lines) == [(number, line) for number in range(3) for line in range(5)]
    assert all([line for n, line in lines if n == number] == list(range(5)) for number in range(3))


def test_a_version_from_publishing_to_the_private_copy(
    any_registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    assert not any_registry.exists() and any_registry.versions() == []
    heard = list[tuple[str, int, int]]()
    source = make_checkpoint(shards=True)
    ref = any_registry.publish(
        source, name="pol", kind="policy", metadata=METADATA, progress=lambda *step: heard.append(step)
    )
    assert any_registry.exists() and any_registry.versions() == [ref]
    assert any_registry.verify(ref, progress=lambda *step: heard.append(step)).ref == ref
    assert any_registry.manifest(ref).ref == ref
    copy = any_registry.private_copy(ref, tmp_path / "cache", progress=lambda *step: heard.append(step))
    for path in source.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    ends = {phase: done == total for phase, done, total in heard}
    assert ends.pop("copying") and ends.pop("hashing") and ends.pop("checking numbers")
    assert ends == ({"uploading": True, "downloading": True} if "s3://" in any_registry.address else {})
    assert any_registry.publish(source, name="pol", kind="policy", metadata=METADATA) == ref
    assert any_registry.private_copy(ref, tmp_path / "cache") == copy
    assert [entry.event for entry in any_registry.log()] == [AuditEvent.PUBLISH]
    with pytest.raises(NotFound):
        any_registry.manifest(ModelRef("pol", "s9-0123456789ab"))


def published(registry: Registry, make: Callable[..., Path], mark: str = "") -> str:
    policy = registry.publish(make(mark=mark), name="pol", kind="policy", metadata=METADATA)
    reward = registry.publish(make("reward"), name="rew", kind="reward", metadata=METADATA)
    return registry.create_release(policy, reward).id


def test_a_channel_goes_forth_and_back(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(NotFound):
        any_registry.channel("default")
    first, second = published(any_registry, make_checkpoint), published(any_registry, make_checkpoint, "other")
    any_registry.promote("default", first, expected_generation=0, by="me")
    any_registry.promote("default", second, expected_generation=1, by="me")
    with pytest.raises(Conflict, match="generation 2"):
        any_registry.promote("default", first, expected_generation=1, by="me")
    assert any_registry.rollback("default", by="me").release == first
    assert any_registry.promote("default", first, expected_generation=None, by="me").generation == 3
    assert any_registry.channel_names() == ["default"] and any_registry.release_ids() == sorted([first, second])
    moves = [(entry.event.value, entry.generation) for entry in any_registry.log() if entry.what == "default"]
    assert moves == [("promote", 1), ("promote", 2), ("rollback", 3)]


def test_of_promotions_from_one_generation_exactly_one_wins(
    any_registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    releases = [published(any_registry, make_checkpoint, str(number)) for number in range(2)]
    barrier = threading.Barrier(4)

    def run(number: int) -> str:
        barrier.wait()
        try:
            return any_registry.promote("default", releases[number % 2], expected_generation=0, by=str(number)).by
        except Conflict:
            return "lost"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    winner = any_registry.channel("default")
    assert winner.generation == 1 and sorted(results) == sorted([winner.by, "lost", "lost", "lost"])


def test_promotions_that_expect_nothing_all_take_place(
    any_registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    releases = [published(any_registry, make_checkpoint, str(number)) for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: any_registry.promote("c", one, expected_generation=None, by="x"), releases))
    assert any_registry.channel("c").generation == 3
    assert len([entry for entry in any_registry.log() if entry.what == "c"]) == 3


def test_a_status_record_is_each_instances_own(any_registry: Registry) -> None:
    any_registry.write_status("policy", "a", {"x": 1})
    any_registry.write_status("policy", "b", {"x": 2})
    assert any_registry.statuses("policy") == {"a": {"x": 1}, "b": {"x": 2}}
    any_registry.remove_status("policy", "a")
    with pytest.raises(NotFound):
        any_registry.remove_status("policy", "a")


def test_what_nobody_names_is_marked_then_removed(
    any_registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    current = published(any_registry, make_checkpoint)
    any_registry.promote("default", current, expected_generation=None, by="me")
    lost = any_registry.publish(make_checkpoint(mark="lost"), name="pol", kind="policy", metadata=METADATA)

    def collect() -> dict[ModelRef, Action]:
        return {one.ref: one.action for one in any_registry.collect(NOW, by="gc", apply=True)}

    assert collect()[lost] is Action.MARK
    again = any_registry.publish(make_checkpoint(mark="lost"), name="pol", kind="policy", metadata=METADATA)
    assert again == lost and collect()[lost] is Action.MARK, "publishing it again took the mark away"
    assert collect()[lost] is Action.REMOVE
    assert lost not in any_registry.versions() and len(any_registry.versions()) == 2
    with pytest.raises(NotFound):
        any_registry.private_copy(lost, tmp_path / "cache")
    assert any_registry.publish(make_checkpoint(mark="lost"), name="pol", kind="policy", metadata=METADATA) == lost
    assert any_registry.verify(lost).ref == lost and set(collect().values()) == {Action.KEEP, Action.MARK}


def test_where_a_document_is_damaged_nothing_goes(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    published(any_registry, make_checkpoint)
    any_registry.collect(NOW, by="gc", apply=True)
    layout = any_registry._layout
    layout.store.replace(layout.channel("broken"), b"{")
    with pytest.raises(VerificationError):
        any_registry.collect(NOW, by="gc", apply=True)
    assert len(any_registry.versions()) == 2


def test_a_release_that_was_edited_is_refused(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    release, layout = published(any_registry, make_checkpoint), any_registry._layout
    document = json.loads(layout.store.read(layout.release(release)))
    document["policy"]["name"] = "other"
    layout.store.replace(layout.release(release), json.dumps(document).encode())
    with pytest.raises(VerificationError):
        promote_on(
            layout, "default", release, expected_generation=None, by="me", gatekeeper=lambda current, release: None
        )


def test_a_share_begins_and_ends_and_of_changes_from_one_generation_exactly_one_wins(
    any_registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    first, second = published(any_registry, make_checkpoint), published(any_registry, make_checkpoint, "other")
    any_registry.promote("default", first, expected_generation=0, by="me")
    shared = any_registry.canary("default", second, 0.25, by="me", expected_generation=1)
    assert any_registry.channel("default") == shared and shared.generation == 2
    changes: list[Callable[[], Channel]] = [
        lambda: any_registry.promote("default", second, expected_generation=2, by="me"),
        lambda: any_registry.canary("default", second, 0.5, expected_generation=2, by="me"),
        lambda: any_registry.stop_canary("default", expected_generation=2, by="me"),
    ]
    barrier = threading.Barrier(len(changes))

    def run(change: Callable[[], Channel]) -> str:
        barrier.wait()
        try:
            return change().model_dump_json()
        except Conflict:
            return "lost"

    with ThreadPoolExecutor(len(changes)) as pool:
        results = list(pool.map(run, changes))
    found = any_registry.channel("default")
    assert found.generation == 3 and sorted(results) == sorted([found.model_dump_json(), "lost", "lost"])
