"""A rollback is asked for once and takes place once, however often it is asked for, and whoever was faster."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest
from registry.tiny import METADATA
from typer.testing import CliRunner, Result

from acemath_registry import Conflict, ModelRef, Registry, Release
from acemath_registry.cli import app
from acemath_registry.stores import Overtaken


@pytest.fixture
def releases(registry: Registry, reward: ModelRef, make_checkpoint: Callable[..., Path]) -> list[Release]:
    """Three releases; the first and then the second were promoted on `default`."""
    made = []
    for mark in ("old", "new", "other"):
        policy = registry.publish(make_checkpoint(mark=mark), name="pol", kind="policy", metadata=METADATA)
        made.append(registry.create_release(policy, reward))
    for release in made[:2]:
        registry.promote("default", release.id, expected_generation=None, by="ann")
    return made


def run(registry: Registry, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--root", str(registry.root)])


def rolled_back(registry: Registry, *options: str) -> dict[str, Any]:
    result = run(registry, "rollback", "default", "--by", "bob", *options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(registry: Registry, *options: str) -> dict[str, Any]:
    """The error, after the channel was found unchanged."""
    before = registry.channel("default")
    result = run(registry, "rollback", "default", "--by", "bob", *options, "--json")
    assert result.exit_code == 1 and registry.channel("default") == before
    return json.loads(result.stderr)["error"]


def test_it_says_from_where_to_where(registry: Registry, releases: list[Release]) -> None:
    told = run(registry, "rollback", "default", "--from", releases[1].id)
    lines = dict(line.split("\t", 1) for line in told.stdout.splitlines())
    assert (lines["from"], lines["to"], lines["generation"]) == (releases[1].id, releases[0].id, "3")
    assert lines["release"] == releases[0].id


def test_another_release_than_the_one_that_was_meant_is_named(registry: Registry, releases: list[Release]) -> None:
    error = refused(registry, "--from", releases[2].id)
    assert error["param"] == "from" and releases[1].id in error["message"] and releases[2].id in error["message"]
    registry.rollback("default", by="watch")
    error = refused(registry, "--from", releases[1].id)
    assert f"rolled back from {releases[1].id} already, by watch" in error["message"]
    assert refused(registry, "--from", "the bad one")["code"] == "invalid_request"


def test_who_comes_after_the_watch_does_not_bring_the_bad_one_back(registry: Registry, releases: list[Release]) -> None:
    registry.rollback("default", by="watch")
    error = refused(registry)
    assert "by a rollback" in error["message"] and "watch" in error["message"]
    for way in ("--expect 3", f"acemath registry promote default --release {releases[1].id}"):
        assert way in error["message"]


@pytest.mark.parametrize("how", ["--expect", "--from", "promote"])
def test_who_says_what_is_current_may_go_forth_again(how: str, registry: Registry, releases: list[Release]) -> None:
    registry.rollback("default", by="watch")
    if how == "promote":
        assert run(registry, "promote", "default", "--release", releases[1].id).exit_code == 0
    else:
        told = rolled_back(registry, how, "3" if how == "--expect" else releases[0].id)
        assert (told["from"], told["to"]) == (releases[0].id, releases[1].id)
    assert registry.channel("default").release == releases[1].id


def test_a_record_knows_that_it_came_by_a_rollback_until_the_next_promotion(
    registry: Registry, releases: list[Release]
) -> None:
    back = registry.rollback("default", by="watch")
    assert back.rollback and back.document()["rollback"] is True
    registry.canary("default", releases[2].id, 0.1, by="ann")
    registry.stop_canary("default", by="ann")
    registry.promote("default", releases[0].id, expected_generation=None, by="ann", again=True)
    assert "by a rollback" in refused(registry)["message"]
    promoted = registry.promote("default", releases[2].id, expected_generation=None, by="ann")
    assert not promoted.rollback and "rollback" not in promoted.document()
    assert rolled_back(registry)["to"] == releases[0].id


# --------------------------------------------------------------------------------------------- where there are no locks


class Overtaking:
    """A store without locks, in which somebody else's change comes between the next change's look and its write."""

    def __init__(self, store: Any, meanwhile: Callable[[], object]) -> None:
        self._store, self._meanwhile = store, [meanwhile]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def changing(self, path: PurePath, lock: PurePath) -> Iterator[Any]:
        if not self._meanwhile:
            with self._store.changing(path, lock) as change:
                yield change
            return
        yield _Losing(self._store.read(path), self._meanwhile.pop())


class _Losing:
    def __init__(self, data: bytes, meanwhile: Callable[[], object]) -> None:
        self._data, self._meanwhile = data, meanwhile

    def read(self) -> bytes:
        return self._data

    def write(self, data: bytes) -> None:
        self._meanwhile()
        raise Overtaken("somebody was faster")


@pytest.fixture
def overtaken(registry: Registry) -> Callable[[Callable[[], object]], Registry]:
    def make(meanwhile: Callable[[], object]) -> Registry:
        found = Registry(registry.root)
        found._layout = replace(found._layout, store=Overtaking(found._layout.store, meanwhile))
        return found

    return make


@pytest.mark.parametrize("meanwhile", ["a rollback", "a promotion"])
def test_a_rollback_that_was_overtaken_goes_nowhere_else(
    meanwhile: str, registry: Registry, releases: list[Release], overtaken: Callable[..., Registry]
) -> None:
    def faster() -> object:
        if meanwhile == "a rollback":
            return registry.rollback("default", by="watch")
        return registry.promote("default", releases[2].id, expected_generation=None, by="cat")

    with pytest.raises(Conflict, match="meanwhile") as caught:
        overtaken(faster).rollback("default", by="bob")
    assert caught.value.should_retry is False
    found = registry.channel("default")
    assert found.release == releases[0 if meanwhile == "a rollback" else 2].id and found.generation == 3


def test_a_rollback_goes_on_past_what_changes_no_release(
    registry: Registry, releases: list[Release], overtaken: Callable[..., Registry]
) -> None:
    slow = overtaken(lambda: registry.canary("default", releases[2].id, 0.1, by="cat"))
    found = slow.rollback("default", by="bob")
    assert (found.release, found.generation, found.canary) == (releases[0].id, 4, None)


def test_a_share_that_another_release_has_meanwhile_is_not_taken_away(
    registry: Registry, releases: list[Release], overtaken: Callable[..., Registry]
) -> None:
    def another() -> None:
        registry.stop_canary("default", by="cat")
        registry.canary("default", releases[0].id, 0.2, by="cat")

    registry.canary("default", releases[2].id, 0.1, by="ann")
    with pytest.raises(Conflict, match="meanwhile"):
        overtaken(another).stop_canary("default", by="bob")
    canary = registry.channel("default").canary
    assert canary is not None and canary.release == releases[0].id
