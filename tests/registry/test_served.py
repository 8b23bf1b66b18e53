"""What was served last stays known, and a way back leads to it, not to what nobody served."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from registry.tiny import METADATA
from typer.testing import CliRunner

from acemath_registry import Conflict, ModelRef, Registry, Release, Served, StorageError
from acemath_registry.cli import app
from acemath_registry.collect import Action, Retention

Make = Callable[..., Path]


@pytest.fixture
def four(registry: Registry, reward: ModelRef, make_checkpoint: Make) -> list[Release]:
    """A, B, C and D; the channel does not exist."""
    made = []
    for mark in "abcd":
        policy = registry.publish(make_checkpoint(mark=mark), name="pol", kind="policy", metadata=METADATA)
        made.append(registry.create_release(policy, reward))
    return made


def promote(registry: Registry, release: Release, *, serve: bool = True) -> str | None:
    """Promote it and, if gateways serve it, say so; the release that a rollback would go to."""
    channel = registry.promote("default", release.id, expected_generation=None, by="ann")
    if serve:
        serves(registry, release, channel.generation)
    return channel.previous


def serves(registry: Registry, release: Release, generation: int, at: float | None = None) -> None:
    """What a gateway writes that has flipped."""
    record = {"channel": "default", "generation": generation, "release": release.id, "leases": {}}
    registry.write_status("gateway", "g1", record | {"at": time.time() if at is None else at})
    registry.note_served("default", Served(release.id, generation), by="g1")


def test_nobody_served_anything(registry: Registry, four: list[Release]) -> None:
    assert registry.served("default") is None
    promote(registry, four[0], serve=False)
    assert promote(registry, four[1], serve=False) == four[0].id, "then it is what the channel named"
    assert registry.served("default") is None


def test_a_rollback_goes_past_what_was_never_served(registry: Registry, four: list[Release]) -> None:
    """A serves; replicas reject B; C is promoted and fails live: the watch goes back to A."""
    a, b, c, _ = four
    promote(registry, a)
    assert promote(registry, b, serve=False) == a.id
    assert promote(registry, c) == a.id
    back = registry.rollback("default", by="watch")
    assert (back.release, back.previous, back.rollback) == (a.id, c.id, True)
    with pytest.raises(Conflict, match="rolled back from"):
        registry.rollback("default", by="ann", expected_release=c.id)


def test_what_is_being_rolled_back_from_is_not_gone_back_to(registry: Registry, four: list[Release]) -> None:
    """Gateways serve it until the one before is up again, which may take as long as an engine's start."""
    a, _, c, d = four
    promote(registry, a)
    promote(registry, c)
    registry.rollback("default", by="watch")
    assert registry.served("default") == Served(c.id, 2) and registry.to_come_back_to("default") is None
    assert promote(registry, d, serve=False) == a.id


@pytest.mark.parametrize("gone", ["silent", "stopped"])
def test_what_gateways_served_long_ago_is_nothing_to_go_by(registry: Registry, four: list[Release], gone: str) -> None:
    a, b, c, _ = four
    promote(registry, a)
    if gone == "silent":
        serves(registry, a, 1, at=time.time() - 61.0)
    else:
        registry.remove_status("gateway", "g1")
    assert promote(registry, b, serve=False) == a.id and registry.to_come_back_to("default") == Served(a.id, 1)
    assert promote(registry, c, serve=False) == b.id, "gateways may serve it, and not be able to write"
    assert registry.to_come_back_to("default") is None, "neither named nor named before"


def test_the_newest_gateway_counts(registry: Registry, four: list[Release]) -> None:
    a, b, c, _ = four
    promote(registry, a)
    promote(registry, b)
    slow = {"channel": "default", "generation": 1, "release": a.id, "leases": {}, "at": time.time()}
    starting = {"channel": "default", "generation": 0, "release": None, "leases": {}, "at": time.time()}
    elsewhere = slow | {"channel": "other", "generation": 9}
    for name, record in (("slow", slow), ("starting", starting), ("elsewhere", elsewhere)):
        registry.write_status("gateway", name, record)
    assert promote(registry, c, serve=False) == b.id


def test_what_was_served_is_promoted_again(registry: Registry, four: list[Release]) -> None:
    a, b, c, _ = four
    promote(registry, a)
    promote(registry, b)
    assert promote(registry, c, serve=False) == b.id
    assert promote(registry, b, serve=False) == c.id, "that is what was asked to go, and there is nothing better known"
    registry.rollback("default", by="ann")
    assert registry.channel("default").release == c.id


def test_going_back_by_promoting_keeps_the_older_way_back(registry: Registry, four: list[Release]) -> None:
    a, b, c, d = four
    promote(registry, a)
    promote(registry, b)
    promote(registry, c, serve=False)
    promote(registry, d, serve=False)
    assert registry.channel("default").previous == b.id
    assert promote(registry, b, serve=False) == d.id


def test_the_command_line_shows_it(registry: Registry, four: list[Release]) -> None:
    options = ["--root", str(registry.root), "--json"]
    promote(registry, four[0])
    promote(registry, four[1], serve=False)
    shown = json.loads(CliRunner().invoke(app, ["show", "default", *options]).stdout)
    assert (shown["release"], shown["served"]) == (four[1].id, four[0].id)
    (row,) = json.loads(CliRunner().invoke(app, ["list", *options]).stdout)["channels"]
    assert row["served"] == four[0].id


def test_a_gateway_that_is_behind_does_not_turn_it_back(registry: Registry, four: list[Release]) -> None:
    promote(registry, four[0])
    promote(registry, four[1])
    registry.note_served("default", Served(four[0].id, 1), by="slow")
    assert registry.served("default") == Served(four[1].id, 2)
    registry.note_served("other", Served(four[0].id, 9), by="g2")
    assert registry.served("default") == Served(four[1].id, 2), "each channel has its own"


def test_a_registry_that_was_restored_is_not_held_by_the_generations_of_before(
    registry: Registry, four: list[Release]
) -> None:
    promote(registry, four[0])
    registry.note_served("default", Served(four[1].id, 40), by="before")
    registry.note_served("default", Served(four[0].id, 1), by="g1")
    assert registry.served("default") == Served(four[0].id, 1)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"release": "x"}', '{"release": "r-aaaaaaaaaaaa", "generation": 1}', '{"release": 1}', "{}"]
)
def test_a_record_that_says_nothing_is_none_and_is_written_anew(
    registry: Registry, four: list[Release], text: str
) -> None:
    promote(registry, four[0])
    file = registry.root / "status" / "served" / "default.json"
    file.write_text(text)
    assert registry.served("default") is None
    assert promote(registry, four[1]) == four[0].id
    assert json.loads(file.read_text())["release"] == four[1].id


def test_a_registry_that_cannot_be_read_says_so(
    registry: Registry, four: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, four[0])

    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(registry._layout.store), "read", refuse)
    with pytest.raises(StorageError):
        registry.served("default")


def test_what_was_served_last_is_not_collected(registry: Registry, four: list[Release]) -> None:
    promote(registry, four[0])
    for release in four[1:]:
        promote(registry, release, serve=False)
    verdicts = registry.collect(Retention(newest=0, age_s=0.0, history=1), by="gc", apply=False)
    found = {verdict.ref: verdict for verdict in verdicts}
    assert found[four[0].policy.ref].action is Action.KEEP
    assert found[four[1].policy.ref].action is Action.MARK
