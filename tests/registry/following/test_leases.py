from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acemath_registry import Registry
from acemath_registry.following import StatusLeases

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({}, "no gateway has written a record"),
        ({"a": {"generation": 5, "leases": {}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {"r-old": 0, "r-new": 7}, "at": NOW}}, None),
        ({"a": {"generation": 5, "leases": {"r-old": 1}, "at": NOW}}, "gateway a: it holds leases"),
        ({"a": {"generation": 4, "leases": {}, "at": NOW}}, "gateway a: it still routes by generation 4"),
        ({"a": {"generation": 5, "leases": {}, "at": NOW - 31}}, "gateway a: its record is 31 s old"),
        ({"a": {"generation": 5, "at": NOW}}, "gateway a: its record has no generation, leases and at"),
        (
            {"a": {"generation": 5, "leases": {}, "at": NOW}, "b": {"generation": 4, "leases": {}, "at": NOW}},
            "gateway b: it still routes by generation 4",
        ),
    ],
)
async def test_only_complete_knowledge_lets_go(tmp_path: Path, records: dict[str, Any], reason: str | None) -> None:
    registry = Registry(tmp_path)
    for name, record in records.items():
        registry.write_status("gateway", name, record)
    assert await StatusLeases(registry, 30, lambda: NOW).holder(4, {"r-old"}) == reason


async def test_an_unreadable_record_is_unknown(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write_status("gateway", "a", {"generation": 5, "leases": {}, "at": NOW})
    (tmp_path / "status" / "gateway" / "a.json").write_text("{")
    held = await StatusLeases(registry, 30, lambda: NOW).holder(4, {"r-old"})
    assert held is not None
    assert held.startswith("the gateways' records cannot be read")
