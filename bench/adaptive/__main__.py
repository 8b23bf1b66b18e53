"""Does adaptive N save tokens, and does it cost accuracy? A replay of recorded candidates under the gateway's rules.

    python -m bench.adaptive FILE [FILE …] --out bench/results/adaptive.json [--n 16] [--orders 20]

FILE is a journal of `acemath eval run` (`<set>.draws.jsonl`: answers, scores, tokens), or a file of pools (`id,
problem, answer, candidates: [{text, correct}]`, .gz too), which has neither scores nor tokens: there only a majority is
replayed, and cost is in characters; or what `bench.early_reject score` wrote (`.json.gz`: grades, scores and tokens
without texts). Problems with fewer than N candidates are left out; sets of one unit, one N and one reward version are
measured together too.

Every way to make candidates runs on the same random orders of them, so that differences are paired. Intervals are 95 %,
over problems, or over the templates that problems were made from. The score rule takes a calibration that was fitted on
the other sets. Writes JSON, a plot beside it (.svg), and prints a table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acemath_answers import AnswerJudge
from acemath_core.calibration import Calibration
from acemath_core.wire import Selection
from acemath_evaluation.calibration import calibrate
from acemath_evaluation.intervals import RESAMPLES
from acemath_evaluation.results import NothingToMeasure
from bench.adaptive.measure import measure, ways
from bench.adaptive.plot import draw
from bench.adaptive.table import table
from bench.early_reject import pool
from bench.recorded.figures import orders_of
from bench.recorded.pools import RecordedSet, joined, read_set
from bench.reward.machine import described


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, replay, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, help="candidates a problem; default: as many as all problems of its file have")
    parser.add_argument("--orders", type=int, default=20, help="random orders of a problem's candidates")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    options = parser.parse_args(arguments)
    with AnswerJudge() as judge:
        sets = [one for path in options.files for one in _read(path, judge, options.n)]
    document = {
        "machine": described(),
        "orders": options.orders,
        "sets": [
            _measured(one, _calibration(one, sets), options.orders, options.resamples) for one in [*sets, *joined(sets)]
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    draw(document, options.out.with_suffix(".svg"))
    print(table(document))


def _read(path: Path, judge: AnswerJudge, n: int | None) -> list[RecordedSet]:
    if path.name.endswith(".json.gz"):
        return [replace(one, n=n or one.n) for one in pool.read(path) if one.n >= (n or 0)]
    return [read_set(path, judge, n)]


def _measured(one: RecordedSet, calibration: Calibration | None, orders: int, resamples: int) -> dict[str, Any]:
    selections = list(Selection) if one.scored else [Selection.MAJORITY]
    made, drawn = ways(one.n, calibration), orders_of(one, orders)
    return {
        "name": one.name,
        "problems": len(one.problems),
        "clusters": len(set(one.clusters)),
        "n": one.n,
        "unit": one.unit,
        "reward": one.reward,
        "calibration": calibration.model_dump() if calibration else None,
        "selections": {selection.value: measure(one, drawn, selection, made, resamples) for selection in selections},
    }


def _calibration(one: RecordedSet, sets: Sequence[RecordedSet]) -> Calibration | None:
    """A calibration of the set's reward version, fitted on the other sets; None where that gives no probability."""
    if not one.scored:
        return None
    parts = set(one.name.split("+"))
    others = [p for other in sets if other.reward == one.reward and other.name not in parts for p in other.graded]
    try:
        found = calibrate(others, one.reward).calibration if others else None
    except NothingToMeasure:
        return None
    # The temperature stays 1, so that a set's ways differ in nothing but when they stop.
    if found is None or found.slope is None:
        return None
    return found.model_copy(update={"temperature": 1.0})


if __name__ == "__main__":
    main()
