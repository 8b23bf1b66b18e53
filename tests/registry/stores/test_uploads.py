"""What a publisher left in a bucket that was killed: shown, taken away when it is old, and never under a living one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from registry.stores.conftest import BUCKET, App, Faults, Make, at_request, publish, refuse, store_of

from acemath_core.errors import ServiceError
from acemath_registry import Conflict, ModelRef, Registry, StorageError
from acemath_registry.announcing import announced
from acemath_registry.collect import Retention
from acemath_registry.stores import removal, uploads

DAY_S = 24 * 3600.0
EVERYTHING = Retention(newest=1000, age_s=-10.0)  # no version goes, and what was left just now is old enough


@dataclass
class Left:
    """A publisher was killed ahead of the manifest."""

    registry: Registry
    source: Path
    ref: ModelRef

    @property
    def folder(self) -> str:
        return f"{self.registry._layout.version(self.ref)}/"

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in store_of(self.registry).bucket.sizes(self.folder)]

    def collect(self, retention: Retention = EVERYTHING, *, apply: bool = True) -> None:
        self.registry.collect(retention, by="gc", apply=apply)

    def kill_again(self) -> None:
        """As if the last publisher had been killed ahead of the manifest and of one other file."""
        bucket, version = store_of(self.registry).bucket, self.registry._layout.version(self.ref)
        for name in ("manifest.json", "tokenizer.json"):
            bucket.delete(str(version / name))


@pytest.fixture
def left(registry: Registry, make_checkpoint: Make, faults: Faults) -> Left:
    def kill(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith("manifest.json"):
            return None
        return refuse("403 Forbidden", "AccessDenied")(app, environ, start_response)

    source = make_checkpoint()
    faults.rule = kill
    with pytest.raises(StorageError):
        publish(registry, source)
    faults.rule = None
    (version,) = registry._layout.store.folders(registry._layout.models / "pol")
    made = Left(registry, source, ModelRef("pol", version))
    assert registry.versions() == [] and made.keys
    return made


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written just now is more than a day old."""
    monkeypatch.setattr("acemath_registry.stores.objects.STALE_STAGING_S", -10.0)


def test_it_is_shown_with_the_time_until_which_it_stays(left: Left) -> None:
    left.collect(Retention(newest=0, age_s=0.0, grace_s=0.0))
    (shown,) = left.registry.leftovers(Retention(age_s=0.0))
    assert shown.path == f"s3://{BUCKET}/{left.folder[:-1]}"
    assert shown.size == sum(path.stat().st_size for path in left.source.iterdir())
    assert abs(shown.until - time.time() - DAY_S) < 60
    (longer,) = left.registry.leftovers(Retention(age_s=3 * DAY_S))
    assert abs(longer.until - time.time() - 3 * DAY_S) < 60


def test_it_goes_when_it_is_old_and_can_be_published_again(left: Left, aged: None) -> None:
    bucket, models = store_of(left.registry).bucket, left.registry._layout.models
    others = [str(models / name) for name in ("README", "pol/notes/x", "-/s7-0123456789ab/x", "pol/s7-0123456789abc/x")]
    for key in others:
        bucket.put(key, b"somebody else's")
    left.collect(apply=False)
    assert left.keys, "a plan removes nothing"
    left.collect(Retention(newest=1000, age_s=3600.0))
    assert left.keys, "younger than what was asked for"
    left.collect()
    assert left.keys == [] and left.registry.leftovers(EVERYTHING) == []
    assert sorted(key for key, _ in bucket.sizes(f"{models}/")) == sorted(others)
    assert list(bucket.sizes(f"{left.registry._layout.tombstones}/")) == []
    assert publish(left.registry, left.source) == left.ref
    left.collect()
    assert left.registry.verify(left.ref).ref == left.ref and left.registry.leftovers(EVERYTHING) == []


def test_what_is_announced_stays(left: Left, aged: None) -> None:
    with announced(left.registry._layout, [str(left.ref)], [left.ref]):
        left.collect()
        assert left.keys and left.registry.leftovers(EVERYTHING) == [], "somebody is publishing it"
    assert publish(left.registry, left.source) == left.ref, "and the mark was withdrawn"


def test_a_removal_that_is_under_way_is_another_matter(left: Left, aged: None) -> None:
    publish(left.registry, left.source)
    layout = left.registry._layout
    layout.store.create(layout.tombstone(left.ref), b'{"at": 0.0, "by": "gc", "why": "nobody names it"}')
    with layout.store.removing(layout.version(left.ref), layout.tombstone(left.ref), layout.staging) as going:
        going.go()
        keys = left.keys
        left.collect()
        assert left.keys == keys != []
    going.clean()
    assert left.keys == []


@pytest.mark.parametrize("first", ["collect", "publish"])
def test_whoever_comes_in_between_at_any_request(left: Left, aged: None, first: str) -> None:
    actions: dict[str, Callable[[], object]] = {
        "collect": left.collect,
        "publish": lambda: publish(left.registry, left.source),
    }
    outer = actions.pop(first)
    (inner,) = actions.values()
    number, seen, outcomes = 1, [1], set[bool]()
    while number <= seen[0]:
        left.kill_again()
        with at_request(store_of(left.registry), number, inner) as seen, suppress(Conflict):  # it may give way
            outer()
        for ref in left.registry.versions():
            assert left.registry.verify(ref).ref == ref
        outcomes.add(left.registry.versions() == [left.ref])
        left.collect()
        assert publish(left.registry, left.source) == left.ref, "nobody is kept out"
        number += 2
    assert number > 10 and outcomes == ({True, False} if first == "collect" else {True}), "who publishes is in time"


def test_a_collector_that_is_killed_at_any_request(
    left: Left, aged: None, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, ended = 0, False
    while not ended:
        left_over = [step]

        def fail(
            app: App, environ: dict[str, Any], start_response: Callable[..., Any], count: list[int] = left_over
        ) -> Any:
            count[0] -= 1
            return refuse("403 Forbidden", "AccessDenied")(app, environ, start_response) if count[0] < 0 else None

        faults.rule = fail
        with suppress(ServiceError):
            left.collect()
        ended, faults.rule = left_over[0] >= 0, None
        with monkeypatch.context() as an_hour_later:
            an_hour_later.setattr(removal, "DEAD_AFTER_S", 0.0)
            removal.sweep(store_of(left.registry).bucket, left.registry._layout.root)
        assert publish(left.registry, left.source) == left.ref and left.registry.verify(left.ref).ref == left.ref
        left.kill_again()
        step += 3
    assert step > 10


def test_a_killed_collector_that_a_publisher_came_before_is_not_followed(left: Left, aged: None) -> None:
    """It had set its mark and not yet looked who publishes; an hour later the publisher is still at work."""
    layout = left.registry._layout
    with announced(layout, [str(left.ref)], [left.ref]):
        mark = b'{"at": 0.0, "by": "gc", "why": "it has no manifest", "removing_since": 0.0}'
        layout.store.replace(layout.tombstone(left.ref), mark)
        left.collect()
        assert left.keys
    assert publish(left.registry, left.source) == left.ref and left.registry.verify(left.ref).ref == left.ref


def test_a_publisher_whose_announcement_may_be_gone_makes_nothing_visible(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_MOST_UPLOAD_S", -1.0)
        with pytest.raises(Conflict, match="publish again: what is there is not sent again"):
            publish(left.registry, left.source)
    assert left.registry.versions() == []
    assert publish(left.registry, left.source) == left.ref
