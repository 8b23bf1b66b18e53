"""What a cell found: where the system ended, which promises were broken, and the file that keeps it."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.swapkills.matrix import Cell

Row = dict[str, Any]


class End(enum.StrEnum):
    """Where the system ended."""

    NEW = "new release, old gone"
    BOTH = "new release, old not gone"
    OLD_KEPT = "old release kept"  # the new one was not promoted
    REJECTED = "old release kept, new rejected"
    STUCK = "old release, new promoted"
    SILENT = "no answer"


GOOD = frozenset({End.NEW, End.OLD_KEPT})


class Hit(enum.StrEnum):
    """Whether there was a kill."""

    HIT = "hit"
    MISSED = "missed"  # the state passed, or the victim did not live in it, in every attempt
    NONE = "none"  # nobody was to be killed


@dataclass(frozen=True, slots=True)
class Last:
    """What is seen at the end of a cell.

    Attributes:
        promoted: the channel names the new release.
        answered: since the kill there were answers by the old release only (False), by the new one (True), none (None).
        alone: the new release's versions are the only ones.
        rejected: one of them was rejected.
    """

    promoted: bool
    answered: bool | None
    alone: bool
    rejected: bool


def classify(last: Last) -> End:
    """Where the system is."""
    if last.answered is None:
        return End.SILENT
    if last.answered:
        return End.NEW if last.alone else End.BOTH
    if last.rejected:
        return End.REJECTED
    return End.STUCK if last.promoted else End.OLD_KEPT


def broken(row: Row) -> list[str]:
    """Which promises a cell's row does not keep, in words; none of one that was missed."""
    if row["hit"] == Hit.MISSED:
        return []
    requests, processes = row["requests"], row["processes"]
    parts = sum(requests[name] for name in ("answered", "declared error", "cut", "lost"))
    found = {
        f"it ended with: {row['end']}": End(row["end"]) not in GOOD,
        f"{requests['lost']} lost: {requests['lost_because'][:3]}": requests["lost"] > 0,
        f"{requests['sent']} sent, {parts} accounted for": parts != requests["sent"],
        f"{len(requests['mixed'])} mixed: {requests['mixed'][:3]}": bool(requests["mixed"]),
        f"gauges {row['gauges']}": any(row["gauges"].values()),
        f"{processes['after']} processes, {processes['before']} before": processes["after"] > processes["before"],
        f"left in the registry: {row['left'][:3]}": bool(row["left"]),
    }
    after = row.get("after_publisher")
    if after is not None:
        found[f"half versions: {after['half']}"] = bool(after["half"])
        found[f"the next publish ended with: {after['next']}"] = after["next"] != End.NEW
    return [what for what, is_so in found.items() if is_so]


class Results:
    """A JSON file that is whole after every cell.

    Args:
        path: read if it is there, so that a run goes on where another one stopped.
        facts: what is kept beside the rows.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.rows: dict[str, Row] = known.get("cells", {})
        self._facts = dict(facts) | {name: value for name, value in known.items() if name != "cells"}

    def done(self, cell: Cell) -> bool:
        """Whether there is a row of it."""
        return str(cell) in self.rows

    def keep(self, cell: Cell, row: Row) -> None:
        """Write it."""
        self.rows[str(cell)] = row
        partial = self._path.with_name(f"{self._path.name}.new")
        partial.write_text(json.dumps(self._facts | {"cells": self.rows}, indent=1) + "\n")
        os.replace(partial, self._path)
