import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from registry.faults import run_at_once
from registry.tiny import METADATA

from acemath_registry import ModelRef, Registry
from acemath_registry.audit import AuditEvent, acting_user
from acemath_registry.following import forget_gateway

E = AuditEvent


def told(registry: Registry) -> list[tuple[AuditEvent, str, str]]:
    return [(entry.event, entry.by, entry.what) for entry in registry.log()]


def test_every_change_of_a_registrys_life_is_a_line(
    registry: Registry, make_checkpoint: Callable[..., Path], policy: ModelRef, reward: ModelRef
) -> None:
    other = registry.publish(make_checkpoint(mark="b"), name="pol", kind="policy", metadata=METADATA, by="ann")
    first, second = (registry.create_release(ref, reward).id for ref in (policy, other))
    registry.promote("default", first, expected_generation=None, by="ann")
    registry.promote("default", second, expected_generation=None, by="bob")
    registry.rollback("default", by="cat")
    registry.note(E.REJECT, by="reward/0", what=str(other), why="checksum")
    registry.write_status("gateway", "g1", {"generation": 1, "leases": {}, "at": 1.0})
    forget_gateway(registry, "g1", by="dan", max_age_seconds=60)
    me = acting_user()
    assert told(registry) == [
        (E.PUBLISH, me, str(policy)),
        (E.PUBLISH, me, str(reward)),
        (E.PUBLISH, "ann", str(other)),
        (E.PROMOTE, "ann", "default"),
        (E.PROMOTE, "bob", "default"),
        (E.ROLLBACK, "cat", "default"),
        (E.REJECT, "reward/0", str(other)),
        (E.FORGET_GATEWAY, "dan", "g1"),
    ]
    moves = [entry for entry in registry.log() if entry.what == "default"]
    assert [(move.before, move.after, move.generation) for move in moves] == [
        (None, first, 1),
        (first, second, 2),
        (second, first, 3),
    ]
    assert abs((registry.log()[-1].at - datetime.now(UTC)).total_seconds()) < 60
    lines = (registry.root / "audit.jsonl").read_text().splitlines()
    assert {"from", "to"} <= json.loads(lines[-4]).keys() and all(json.loads(line) for line in lines)


def test_what_changes_nothing_is_no_line(
    registry: Registry, make_checkpoint: Callable[..., Path], policy: ModelRef, reward: ModelRef
) -> None:
    release = registry.create_release(policy, reward).id
    registry.promote("default", release, expected_generation=None, by="ann")
    before = told(registry)
    registry.promote("default", release, expected_generation=None, by="bob")
    registry.publish(make_checkpoint(), name="pol", kind="policy", metadata=METADATA)
    with pytest.raises(Exception, match="no release before"):
        registry.rollback("default", by="bob")
    assert told(registry) == before


def test_a_log_that_cannot_be_written_stops_nobody(
    registry: Registry, policy: ModelRef, reward: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    (registry.root / "audit.jsonl").unlink()
    (registry.root / "audit.jsonl").mkdir()
    with caplog.at_level(logging.WARNING):
        channel = registry.promote(
            "default", registry.create_release(policy, reward).id, expected_generation=0, by="ann"
        )
    assert registry.channel("default") == channel
    assert "promote of default by ann is not in the audit log" in caplog.text


def test_a_line_that_was_torn_costs_only_itself(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    assert registry.log() == []
    registry.note(E.REJECT, by="a", what="one")
    path = registry.root / "audit.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "2026-01-01T00:0')  # killed in the middle
    registry.note(E.REJECT, by="a", what="two")
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe\n[]\n\n")
    registry.note(E.REJECT, by="a", what="three\n", why="x" * 9999)
    assert [what for _, _, what in told(registry)] == ["one", "two", "three\n"]
    assert len(registry.log()[-1].why or "") == 500
    assert caplog.text.count("it is left out") == 3 * 2


def test_only_the_end_of_a_long_log_is_read(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        registry.note(E.REJECT, by="a", what=str(number))
    monkeypatch.setattr("acemath_registry.audit.MAX_TAIL_BYTES", 300)
    found = [entry.what for entry in registry.log()]
    assert found == [str(number) for number in range(20 - len(found), 20)] and 1 <= len(found) < 5


def test_writers_at_once_lose_no_line(registry: Registry, policy: ModelRef) -> None:
    def write(number: int) -> bool:
        return all(registry.note(E.REJECT, by=f"p{number}", what=str(i), why="y" * 400) for i in range(30))

    assert run_at_once(5, write) == ["True"] * 5
    found = [(entry.by, entry.what) for entry in registry.log() if entry.event is E.REJECT]
    assert sorted(found) == sorted((f"p{number}", str(i)) for number in range(5) for i in range(30))
