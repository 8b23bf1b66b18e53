"""Does stopping hopeless candidates early pay? Scores of beginnings, and replays of the rule on recorded candidates.

    python -m bench.early_reject score FILE [FILE …] --checkpoint DIR --work DIR --out bench/results/POOL.json.gz
    python -m bench.early_reject replay POOL.json.gz --out bench/results/early-reject.json.gz [--orders 10]

`score` scores every candidate of FILE (a journal of `acemath eval run`, or a file of pools) whole and cut after each of
--cuts tokens, with the reward engine in this process on one thread. It goes on where it was stopped: what is scored
lies in --work. It writes grades, scores and lengths, without texts, to --out.

`replay` needs that file only. Every way runs on the same random orders of each problem's candidates, so that
differences are paired; intervals are 95 %, over the templates that problems were made from. The temperature of a set's
weighted vote is fitted on the other sets. Writes JSON (.gz), a plot beside it
(.svg), and prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acemath_answers import AnswerJudge
from acemath_core.wire import Selection
from acemath_evaluation.calibration import fit_temperature
from acemath_evaluation.intervals import RESAMPLES
from acemath_gateway.selection import TEMPERATURE
from bench.early_reject import drafts, measure, pool
from bench.early_reject.plot import draw
from bench.early_reject.table import table
from bench.early_reject.ways import ways
from bench.recorded.pools import RecordedSet
from bench.reward.machine import described

CUTS = (16, 24, 32, 48, 64, 96)
SELECTIONS = tuple(selection for selection in Selection if selection is not Selection.MAJORITY)
"""A majority asks for no scores, so there the gateway offers no rejection."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments; score, or replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    score = commands.add_parser("score")
    score.add_argument("files", type=Path, nargs="+")
    score.add_argument("--checkpoint", type=Path, required=True, help="directory of a published reward version")
    score.add_argument("--work", type=Path, required=True, help="directory of what is scored already")
    score.add_argument("--out", type=Path, required=True)
    score.add_argument("--cuts", type=int, nargs="+", default=CUTS)
    score.add_argument("--problems", type=int, help="at most so many of each file, the first ones")
    score.set_defaults(run=_score)
    replay = commands.add_parser("replay")
    replay.add_argument("pool", type=Path)
    replay.add_argument("--out", type=Path, required=True)
    replay.add_argument(
        "--n", type=int, help="candidates a problem; sets with fewer are left out; default: what all have"
    )
    replay.add_argument("--orders", type=int, default=10, help="random orders of a problem's candidates")
    replay.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    replay.set_defaults(run=_replay)
    options = parser.parse_args(arguments)
    options.run(options)


def _score(options: argparse.Namespace) -> None:
    from bench.early_reject.score import score_file  # noqa: PLC0415 - torch

    targets = [(path, options.work / f"{path.name}.drafts.jsonl") for path in options.files]
    for path, target in targets:
        score_file(path, target, options.checkpoint, sorted(options.cuts), options.problems)
    with AnswerJudge() as judge:
        pool.write(pool.collect(targets, judge), options.out)


def _replay(options: argparse.Namespace) -> None:
    read = pool.read(options.pool)
    n = options.n or min(one.n for one in read)
    sets = [replace(one, n=n) for one in read if one.n >= n]
    if not sets:
        raise SystemExit(f"no set of {options.pool} has {n} candidates for each of its problems")
    cuts = sorted({cut for one in sets for found in one.problems for c in found for cut in c.drafts})
    document = {
        "machine": described(),
        "pool": options.pool.name,
        "reward": sets[0].reward,
        "orders": options.orders,
        "sets": _measured(sets, [_temperature(one, read) for one in sets], cuts, options.orders, options.resamples),
    }
    pool.write(document, options.out)
    draw(document, options.out.with_name(options.out.name.removesuffix(".json.gz") + ".svg"))
    print(table(document))


def _measured(
    sets: Sequence[RecordedSet], temperatures: Sequence[float], cuts: Sequence[int], orders: int, resamples: int
) -> list[dict[str, Any]]:
    groups = [*([one] for one in sets), *([list(sets)] if len(sets) > 1 else [])]
    found: list[dict[str, Any]] = [
        {
            "name": "+".join(one.name for one in group),
            "problems": sum(len(one.problems) for one in group),
            "clusters": len({cluster for one in group for cluster in one.clusters}),
            "n": group[0].n,
            "temperatures": {one.name: at for one, at in zip(sets, temperatures, strict=True) if one in group},
            "drafts": [drafts.described(group, cut, resamples) for cut in cuts],
            "selections": {},
        }
        for group in groups
    ]
    made = ways(sets[0].n, cuts)
    for selection in SELECTIONS:
        parts = [measure.replay(one, selection, made, orders, at) for one, at in zip(sets, temperatures, strict=True)]
        every = [*parts, *([measure.joined(parts)] if len(parts) > 1 else [])]
        for one, replayed in zip(found, every, strict=True):
            one["selections"][selection.value] = measure.rows(replayed, made, resamples)
        print(f"{selection.value} is replayed", flush=True)
    return found


def _temperature(one: RecordedSet, sets: Sequence[RecordedSet]) -> float:
    others = [problem for other in sets if other.name != one.name for problem in other.graded]
    return fit_temperature(others) if others else TEMPERATURE


if __name__ == "__main__":
    main()
