"""What a run has found so far, as it is written to the file: after every step, so that nothing measured is lost."""

from __future__ import annotations

import gzip
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.reward.catalogue import Leg
from bench.reward.child import Answer, Child
from bench.reward.groups import Scores
from bench.reward.machine import Quiet

ScoreBook = dict[str, dict[str, Scores]]


class Record:
    """The document and the scores.

    Args:
        out: the document's path; the scores go beside it, `-scores.json.gz`.
        head: what is known before anything is measured.
    """

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self._out, self._started = out, time.monotonic()
        self.document: dict[str, Any] = head | {"legs": {}, "peak": {}, "tuning": {}}
        self.scores: ScoreBook = {}

    def started(self, leg: Leg, child: Child) -> None:
        """A leg is up."""
        entry = {"kind": leg.kind, "start_seconds": round(child.start_seconds, 2), "facts": child.facts, "runs": {}}
        self.document["legs"][leg.name] = entry

    def failed(self, leg: Leg, error: Exception) -> None:
        """A leg has no more to say, and why."""
        entry = self.document["legs"].setdefault(leg.name, {"kind": leg.kind, "runs": {}})
        entry["error"] = str(error)
        say(f"{leg.name} FAILED: {error}")
        self.write()

    def measured(self, leg: Leg, label: str, set_name: str, turn: int, found: Answer, quiet: Quiet) -> None:
        """One timed call."""
        rows = self.document["legs"][leg.name]["runs"].setdefault(label, {}).setdefault(set_name, [])
        row = {"round": turn, "seconds": round(found.seconds[0], 4), "cpu_seconds": found.cpu_seconds}
        rows.append(row | {"foreign_cores": found.foreign_cores, "before": asdict(quiet)})
        known = self.scores.setdefault(label, {}).setdefault(set_name, found.scores[0])
        if known != found.scores[0]:
            row_changed = sum(
                x != y for a, b in zip(known, found.scores[0], strict=True) for x, y in zip(a, b, strict=True)
            )
            rows[-1]["scores_changed_since_first_round"] = row_changed

    def write(self) -> None:
        """Replace both files."""
        self.document["seconds"] = round(time.monotonic() - self._started, 1)
        self._out.parent.mkdir(parents=True, exist_ok=True)
        _replace(self._out, (json.dumps(self.document, indent=1) + "\n").encode())
        _replace(scores_path(self._out), gzip.compress(json.dumps(self.scores).encode(), mtime=0))


def scores_path(out: Path) -> Path:
    """Where the scores of a result lie."""
    return out.with_name(f"{out.stem}-scores.json.gz")


def read_result(out: Path) -> tuple[dict[str, Any], ScoreBook]:
    """What `Record.write` wrote."""
    document: dict[str, Any] = json.loads(out.read_text())
    scores: ScoreBook = json.loads(gzip.decompress(scores_path(out).read_bytes()))
    return document, scores


def say(text: str) -> None:
    """Progress, for who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)
