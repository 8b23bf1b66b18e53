"""The side of a leg that runs in its own process: `python -m bench.reward.worker MODULE JSON`, under its interpreter.

MODULE is one of `bench.reward.legs`; its `create(options)` gives a `Scorer`. Requests come as JSON lines on standard
input, answers go as JSON lines to what was standard output; what libraries print goes to standard error, a log.
Standard library only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from bench.reward.groups import Group, Scores

Options = dict[str, Any]


class Scorer(Protocol):
    """One system, loaded.

    Attributes:
        facts: what a reader must know of it: versions, format, threads, device.
    """

    facts: dict[str, Any]

    def prepare(self, options: Options) -> None:
        """What is not timed: a cold cache, a connection."""
        ...

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """Raw scores of all groups, all handed over at once."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


def answer(scorer: Scorer, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds and scores of each call of a request; a call is a list of groups."""
    options: Options = request.get("options", {})
    seconds, scores = [], []
    for call in request["calls"]:
        groups = [Group.from_json(row) for row in call]
        scorer.prepare(options)
        started = time.perf_counter()
        found = scorer.score(groups, options)
        seconds.append(time.perf_counter() - started)
        scores.append([list(map(float, row)) for row in found])
    return {"seconds": seconds, "scores": scores}


def main() -> None:
    """Load, say so, answer until standard input ends."""
    wire = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(message: dict[str, Any]) -> None:
        wire.write(json.dumps(message) + "\n")
        wire.flush()

    started = time.perf_counter()
    try:
        scorer: Scorer = importlib.import_module(sys.argv[1]).create(json.loads(sys.argv[2]))
    except Exception as error:  # the parent records it as the leg's result
        tell({"error": f"{type(error).__name__}: {error}"})
        raise
    tell({"seconds": time.perf_counter() - started, "facts": scorer.facts})
    for line in sys.stdin:
        try:
            tell(answer(scorer, json.loads(line)))
        except Exception as error:  # as above; the next request may succeed
            tell({"error": f"{type(error).__name__}: {error}"})
    scorer.close()


if __name__ == "__main__":
    main()
